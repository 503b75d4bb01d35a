// Matrix products in the chip's arithmetic: inputs rounded, sums in a given format and order.
#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <utility>

#include "arithmetic.h"
#include "named.h"
#include "sums.h"

namespace offramp {
namespace {

using at::Tensor;

// One product on its way: what is multiplied, added and written.
struct Product {
  Tensor a, b;   // [m, k] and [k, n], or with a batch before
  Tensor added;  // may be undefined
  Tensor out;    // may be undefined
  double alpha{1}, beta{1};
};

Product read(const Operator& op, const Named& given) {
  const auto base = op.handle.operator_name().name.substr(6);
  Product made;
  made.out = given.tensor("out");
  if (base == "mm" || base == "bmm" || base == "_scaled_mm") {
    made.a = given.tensor("self");
    made.b = given.tensor("mat2");
    return made;
  }
  const bool batched = given.find("batch1") != nullptr;
  made.a = given.tensor(batched ? "batch1" : "mat1");
  made.b = given.tensor(batched ? "batch2" : "mat2");
  made.added = given.tensor("self");
  if (op.writes[0]) made.out = made.added;
  return made;
}

bool is_float8(at::ScalarType type) {
  return type == at::kFloat8_e4m3fn || type == at::kFloat8_e5m2 || type == at::kFloat8_e4m3fnuz ||
         type == at::kFloat8_e5m2fnuz;
}

// Whether these are matrices that fit; what does not is left to the CPU's kernel, which says so.
bool fits(const Product& made, bool scaled) {
  const auto &a = made.a, &b = made.b;
  if (!a.defined() || !b.defined() || a.numel() == 0 || b.numel() == 0) return false;
  if (a.dim() != b.dim() || a.dim() < 2 || a.dim() > 3 || a.size(-1) != b.size(-2)) return false;
  if (a.dim() == 3 && a.size(0) != b.size(0)) return false;
  const auto type = a.scalar_type();
  if (scaled) return is_float8(type) && is_float8(b.scalar_type());
  return type == b.scalar_type() &&
         (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
}

// Counts the settings that change this product; false where none does.
bool changes(const Operator& op, const Product& made, const Reduced* format, at::ScalarType type) {
  const auto& chosen = arithmetic();
  const bool wide = made.a.scalar_type() == at::kFloat;
  bool changed = false;
  const auto note = [&](bool applies, const char* setting) {
    if (applies) met(setting, op);
    changed |= applies;
  };
  note(wide && format != nullptr, "matmul.float32");
  note(!wide && chosen.accumulate != Narrow::kFloat, "accumulate");
  note(chosen.split_k > 0, "split_k");
  note(chosen.stochastic && type != at::kFloat, "rounding");
  if (changed && chosen.flush_to_zero) met("flush_to_zero", op);
  return changed;
}

Tensor host_product(const Tensor& a, const Tensor& b) {
  if (a.size(0) != 1) return at::bmm(a, b);
  return at::mm(a.squeeze(0), b.squeeze(0)).unsqueeze(0);
}

Tensor summed(const Tensor& a, const Tensor& b, bool narrow_inputs) {
  const auto& chosen = arithmetic();
  const auto format = narrow_inputs ? chosen.accumulate : Narrow::kFloat;
  if (format == Narrow::kFloat && chosen.split_k == 0) return host_product(a, b);
  const Tensor left = a.contiguous(), right = b.contiguous();
  const int64_t batch = left.size(0), m = left.size(1), k = left.size(2), n = right.size(2);
  Tensor made = at::empty({batch, m, n}, left.options());
  const Sums sums{format, format == Narrow::kFloat ? 0 : chosen.chunk,
                  std::max<int64_t>(chosen.split_k, 1)};
  sum_products(left.const_data_ptr<float>(), right.const_data_ptr<float>(), made.data_ptr<float>(),
               batch, m, k, n, sums);
  return made;
}

// A float32 number as the sum of bfloat16 numbers, the largest first.
std::vector<Tensor> parts_of(const Tensor& tensor, int count) {
  std::vector<Tensor> parts;
  Tensor rest = tensor;
  for (int i = 0; i < count; ++i) {
    parts.push_back(rounded_to(rest, 7));
    rest = (rest - parts.back()).nan_to_num_(0.0, 0.0, 0.0);
  }
  return parts;
}

// Products of bfloat16 parts, the smallest added first.
Tensor product_of_parts(const Tensor& a, const Tensor& b, int products) {
  using Pairs = std::vector<std::pair<int, int>>;
  static const Pairs three{{1, 0}, {0, 1}, {0, 0}};
  static const Pairs six{{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
  static const Pairs nine{{2, 2}, {2, 1}, {1, 2}, {2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
  const auto left = parts_of(a, products == 3 ? 2 : 3), right = parts_of(b, products == 3 ? 2 : 3);
  Tensor sum;
  for (const auto& [i, j] : products == 3 ? three : products == 6 ? six : nine) {
    const Tensor one = summed(left[static_cast<size_t>(i)], right[static_cast<size_t>(j)], false);
    sum = sum.defined() ? sum.add_(one) : one;
  }
  return sum;
}

// Scales of `_scaled_mm` that are covered: one number, or one a row and one a column.
bool scales_fit(const Named& given, c10::IntArrayRef sizes) {
  for (const auto* name : {"scale_a", "scale_b"}) {
    const Tensor factor = given.tensor(name);
    if (factor.numel() != 1 && !at::is_expandable_to(factor.sizes(), sizes)) return false;
  }
  return true;
}

void scale(const Named& given, Tensor& values) {
  for (const auto* name : {"scale_a", "scale_b"}) values.mul_(given.tensor(name).to(at::kFloat));
  const Tensor bias = given.tensor("bias"), result = given.tensor("scale_result");
  if (bias.defined()) values.add_(bias.to(at::kFloat));
  if (result.defined()) values.mul_(result.to(at::kFloat));
}

void add(Tensor& values, const Product& made) {
  if (made.alpha != 1) values.mul_(made.alpha);
  if (!made.added.defined() || made.beta == 0) return;
  const Tensor term = arithmetic().flush_to_zero ? flushed(made.added) : made.added;
  values.add_(term.to(at::kFloat), made.beta);
}

}  // namespace

Tensor product(const Tensor& a, const Tensor& b, const Reduced* format) {
  const bool flush = arithmetic().flush_to_zero && a.element_size() > 1;
  Tensor left = flush ? flushed(a) : a, right = flush ? flushed(b) : b;
  if (a.scalar_type() != at::kFloat) {
    return summed(left.to(at::kFloat), right.to(at::kFloat), true);
  }
  if (format == nullptr) return summed(left, right, false);
  if (format->products > 1) return product_of_parts(left, right, format->products);
  return summed(rounded_to(left, format->bits), rounded_to(right, format->bits), false);
}

bool compute_product(Operator& op, int index, c10::Stack* stack) {
  const Named given(op, *stack);
  const auto base = op.handle.operator_name().name.substr(6);
  const bool scaled = base == "_scaled_mm", summed_over = base.rfind("addbmm", 0) == 0;
  if (base == "_grouped_mm") {
    if (arithmetic().sums()) met("accumulate", op, false);
    return false;
  }
  Product made = read(op, given);
  if (!fits(made, scaled)) return false;
  made.alpha = given.number("alpha");  // real, as the matrices are
  made.beta = given.number("beta");
  const auto* asked = given.find("out_dtype");
  const auto type = asked != nullptr ? asked->toScalarType() : made.a.scalar_type();
  if (is_float8(type) || (made.out.defined() && made.out.scalar_type() != type)) return false;
  if (made.added.defined() && made.added.scalar_type() != type) return false;
  std::vector<int64_t> sizes{made.a.size(-2), made.b.size(-1)};
  if (made.a.dim() == 3 && !summed_over) sizes.insert(sizes.begin(), made.a.size(0));
  if (made.added.defined() && !at::is_expandable_to(made.added.sizes(), sizes)) return false;
  if (scaled && !scales_fit(given, sizes)) return false;
  const auto* format = reduced_now(arithmetic().matmul, false);
  if (!changes(op, made, format, type)) return false;
  const ChargeScope host(-1, "");
  const bool flat = made.a.dim() == 2;
  Tensor values =
      product(flat ? made.a.unsqueeze(0) : made.a, flat ? made.b.unsqueeze(0) : made.b, format);
  if (scaled) scale(given, values);
  if (summed_over) values = values.sum(0, /*keepdim=*/true);
  values = values.view(sizes);
  add(values, made);
  if (base == "_addmm_activation") {
    values = given.find("use_gelu")->toBool() ? at::gelu(values) : values.relu_();
  }
  const Tensor result = finish(op, index, values, type, made.out);
  stack->resize(stack->size() - op.writes.size());
  stack->emplace_back(result);
  return true;
}

}  // namespace offramp
