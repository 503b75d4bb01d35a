// Sums of products in a given format and order.
#pragma once

#include <cstdint>

namespace offramp {

enum class Narrow : int { kFloat = 0, kHalf = 1, kBFloat16 = 2 };

struct Sums {
  Narrow format;
  int64_t chunk;   // products that are summed in `format` before float32 takes the sum
  int64_t splits;  // partial sums over equal parts of the products, added in order in float32
};

// c[m, n] = a[m, k] b[k, n] for each of `batch`, all dense rows of float32. Products are rounded to
// float32 and added one after the other; each sum is rounded to float32, then to the format.
void sum_products(const float* a, const float* b, float* c, int64_t batch, int64_t m, int64_t k,
                  int64_t n, const Sums& sums);

}  // namespace offramp
