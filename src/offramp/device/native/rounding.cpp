// Numbers rounded to fewer bits: float32 significands, 16-bit results, subnormals to zero.
//
// Stochastic rounding draws 16 bits an element from SplitMix64 (Steele, Lea and Flood 2014) of the
// seed, a count of the calls that rounded, and the element's position: the same program draws the
// same numbers, whatever else the chip's generators do.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <atomic>
#include <cstring>

#include "arithmetic.h"

namespace offramp {
namespace {

using at::Tensor;

std::atomic<uint64_t> rounded_calls{0};

uint64_t split_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

bool is_special(uint32_t bits) { return (bits & 0x7f800000U) == 0x7f800000U; }

// The upper half of a float32, the lower half deciding by chance.
uint16_t stochastic_bfloat16(uint32_t bits, uint32_t chance) {
  if (is_special(bits))
    return c10::detail::round_to_nearest_even(c10::detail::fp32_from_bits(bits));
  return static_cast<uint16_t>((bits + (chance & 0xffffU)) >> 16);
}

// float16 has 10 bits of significand above 2^-14, and steps of 2^-24 below.
uint16_t stochastic_half(uint32_t bits, uint32_t chance) {
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t size = bits & 0x7fffffffU;
  if (is_special(bits))
    return c10::detail::fp16_ieee_from_fp32_value(c10::detail::fp32_from_bits(bits));
  if (size < 0x38800000U) {
    const float steps = c10::detail::fp32_from_bits(size) * 0x1p24F;  // below 1024: exact
    const auto whole = static_cast<uint32_t>(steps);
    const auto part = static_cast<uint32_t>((steps - static_cast<float>(whole)) * 65536.0F);
    return sign | static_cast<uint16_t>(whole + ((part + (chance & 0xffffU)) >> 16));
  }
  const uint32_t up = (size + ((chance & 0xffffU) >> 3)) >> 13;  // 13 bits go
  const uint32_t moved = up - (112U << 10);                      // bias 127 becomes 15
  return sign | static_cast<uint16_t>(moved < 0x7c00U ? moved : 0x7c00U);
}

void round_by_chance(const Tensor& to, const Tensor& from) {
  const Tensor source = from.contiguous();
  const Tensor made = at::empty(from.sizes(), to.options());
  const auto call = rounded_calls.fetch_add(1, std::memory_order_relaxed);
  const uint64_t key = split_mix(arithmetic().seed ^ split_mix(call));
  const auto* read = static_cast<const uint32_t*>(source.const_data_ptr());
  auto* write = static_cast<uint16_t*>(made.data_ptr());
  const bool half = to.scalar_type() == at::kHalf;
  for (int64_t i = 0; i < source.numel(); ++i) {
    const auto chance = static_cast<uint32_t>(split_mix(key + static_cast<uint64_t>(i)) >> 48);
    write[i] = half ? stochastic_half(read[i], chance) : stochastic_bfloat16(read[i], chance);
  }
  to.copy_(made);
}

// The bits of the exponent, and of the sign, of a format.
template <class Word>
bool flush_words(Word* words, int64_t count, Word exponent, Word sign) {
  Word found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool tiny = (words[i] & exponent) == 0;
    const Word kept = tiny ? static_cast<Word>(words[i] & sign) : words[i];
    found |= static_cast<Word>(kept ^ words[i]);
    words[i] = kept;
  }
  return found != 0;
}

void flush_dense(const Tensor& tensor) {
  const int64_t count = tensor.numel();
  if (tensor.scalar_type() == at::kFloat) {
    flush_words<uint32_t>(static_cast<uint32_t*>(tensor.data_ptr()), count, 0x7f800000U,
                          0x80000000U);
  } else {
    const uint16_t exponent = tensor.scalar_type() == at::kHalf ? 0x7c00 : 0x7f80;
    flush_words<uint16_t>(static_cast<uint16_t*>(tensor.data_ptr()), count, exponent, 0x8000);
  }
}

}  // namespace

void restart_rounding() { rounded_calls = 0; }

Tensor rounded_to(const Tensor& tensor, int bits) {
  const Tensor source = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
  Tensor made = at::empty_like(source);
  const auto* read = static_cast<const uint32_t*>(source.const_data_ptr());
  auto* write = static_cast<uint32_t*>(made.data_ptr());
  const int drop = kMantissa - bits;
  if (drop <= 0) return tensor;
  const uint32_t half = (1U << (drop - 1)) - 1, kept = ~((1U << drop) - 1);
  const int64_t count = source.numel();
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = read[i];
    const uint32_t up = (word + half + ((word >> drop) & 1U)) & kept;
    write[i] = is_special(word) ? word : up;
  }
  return made;
}

void flush_(const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  if (tensor.is_non_overlapping_and_dense()) return flush_dense(tensor);
  const ChargeScope host(-1, "");
  const Tensor dense = tensor.contiguous();
  flush_dense(dense);
  tensor.copy_(dense);
}

Tensor flushed(const Tensor& tensor) {
  if (tensor.numel() == 0) return tensor;
  const Tensor made = tensor.clone();
  flush_(made);
  return made;
}

void round_into(const Tensor& to, const Tensor& from) {
  const bool narrow = to.scalar_type() == at::kHalf || to.scalar_type() == at::kBFloat16;
  if (narrow && arithmetic().stochastic) return round_by_chance(to, from);
  to.copy_(from);
}

Tensor finish(const Operator& op, int index, const Tensor& values, at::ScalarType type,
              const Tensor& out) {
  Tensor result = out;
  if (!result.defined()) {
    const ChargeScope charge(index, op.name.c_str());
    result = at::empty_like(values, values.options().dtype(type));
  } else if (result.sizes() != values.sizes()) {
    result.resize_(values.sizes());
  }
  const ChargeScope host(-1, "");
  round_into(result, values);
  if (arithmetic().flush_to_zero) flush_(result);
  return result;
}

}  // namespace offramp
