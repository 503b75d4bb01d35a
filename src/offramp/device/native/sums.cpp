#include "sums.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

// Vectors where the machine has them. No fused multiply-add: results are the same on all machines.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define OFFRAMP_VECTORS __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define OFFRAMP_VECTORS
#endif

namespace offramp {
namespace {

constexpr int64_t kColumns = 512;           // of a tile: its sums stay in the first cache
constexpr int64_t kWorthAThread = 1 << 19;  // products

inline uint32_t word_of(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}

inline float float_of(uint32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// Nearest even at bit `drop` of a float32's significand; infinities and NaNs stay.
inline float nearest(float value, int drop) {
  const uint32_t word = word_of(value);
  const uint32_t up = (word + (1U << (drop - 1)) - 1 + ((word >> drop) & 1U)) & ~((1U << drop) - 1);
  return float_of((word & 0x7f800000U) == 0x7f800000U ? word : up);
}

inline uint32_t picked(bool which, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0U - static_cast<uint32_t>(which);
  return (yes & mask) | (no & ~mask);
}

// A float32 with the values that float16 has: steps of 2^-24 below 2^-14, infinity from 65520.
// Without a branch, so that the compiler makes vectors of it.
inline float as_half(float value) {
  const uint32_t word = word_of(value), size = word & 0x7fffffffU;
  const uint32_t normal = (size + 0xfffU + ((size >> 13) & 1U)) & ~0x1fffU;
  const uint32_t tiny = word_of((float_of(size) + 0.5F) - 0.5F);  // 0.5 has steps of 2^-24
  const uint32_t large = picked(normal > 0x477fe000U, 0x7f800000U, normal);
  const uint32_t number = picked(size < 0x38800000U, tiny, large);
  return float_of(picked(size > 0x7f800000U, size, number) | (word & 0x80000000U));
}

// sums[i] += a * b[i], each sum in the named format.
OFFRAMP_VECTORS void add_float(float* sums, const float* b, float a, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += a * b[i];
}
OFFRAMP_VECTORS void add_half(float* sums, const float* b, float a, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] = as_half(sums[i] + a * b[i]);
}
OFFRAMP_VECTORS void add_bfloat16(float* sums, const float* b, float a, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] = nearest(sums[i] + a * b[i], 16);
}

// One row of a tile: parts of the products, each in chunks, each of them in the format.
void sum_row(const float* a, const float* b, float* c, int64_t k, int64_t stride, int64_t columns,
             const Sums& sums) {
  const auto add = sums.format == Narrow::kHalf       ? add_half
                   : sums.format == Narrow::kBFloat16 ? add_bfloat16
                                                      : add_float;
  const int64_t part = std::max<int64_t>((k + sums.splits - 1) / sums.splits, 1);
  float partial[kColumns], narrow[kColumns];
  std::fill(c, c + columns, 0.0F);
  for (int64_t from = 0; from < k; from += part) {
    const int64_t to = std::min(from + part, k);
    const int64_t chunk = sums.chunk > 0 ? sums.chunk : to - from;
    float* whole = from == 0 ? c : partial;
    std::fill(whole, whole + columns, 0.0F);
    for (int64_t start = from; start < to; start += chunk) {
      const bool only = chunk >= to - from;
      float* here = only ? whole : narrow;
      std::fill(here, here + columns, 0.0F);
      const int64_t end = std::min(start + chunk, to);
      for (int64_t i = start; i < end; ++i) add(here, b + i * stride, a[i], columns);
      if (!only) add_float(whole, here, 1.0F, columns);
    }
    if (whole != c) add_float(c, whole, 1.0F, columns);
  }
}

}  // namespace

void sum_products(const float* a, const float* b, float* c, int64_t batch, int64_t m, int64_t k,
                  int64_t n, const Sums& sums) {
  const int64_t rows = batch * m;
  const auto work = [&](int64_t from, int64_t to) {
    for (int64_t column = 0; column < n; column += kColumns) {
      const int64_t columns = std::min(kColumns, n - column);
      for (int64_t row = from; row < to; ++row) {
        const float* of_batch = b + row / m * k * n;
        sum_row(a + row * k, of_batch + column, c + row * n + column, k, n, columns, sums);
      }
    }
  };
  const int64_t wanted = std::min<int64_t>(at::get_num_threads(), rows * k * n / kWorthAThread);
  const int64_t count = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(rows, 1));
  const int64_t share = (rows + count - 1) / count;
  std::vector<std::thread> others;
  for (int64_t i = 1; i < count; ++i) {
    others.emplace_back(work, std::min(i * share, rows), std::min((i + 1) * share, rows));
  }
  work(0, std::min(share, rows));
  for (auto& thread : others) thread.join();
}

}  // namespace offramp
