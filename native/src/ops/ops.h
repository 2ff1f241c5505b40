// The operations: they check sizes, divide the work among threads and call the kernels. Independent of XLA.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/rg_lru.h"
#include "ops/parallel.h"

namespace gemwright {

// Each operation returns one sentence about wrong arguments, or an empty string once the result is written.

// A weight [out, in] and its product y[rows, out] = x[rows, in] . w^T.
struct Weight {
  std::string_view encoding;
  const uint8_t* packed;
  int64_t packed_size;
  int64_t out;
  float* y;
};

// Operations fused with a product; null for none.
struct Fusion {
  const float* gain;        // [in]: x becomes x / rms(x) * (1 + gain)
  const float* gate;        // [rows, in]: x becomes gelu(gate) * x, before the norm
  const float* post_gain;   // [out]: y becomes y / rms(y) * (1 + post_gain)
  const float* residual;    // [rows, out]: added to y, after the norm
  float eps;                // of the norms
  int activation_bits = 8;  // 8, or 16 as the sum of two 8-bit numbers; ignored if a weight is of plain floats
};

// Multiplies x by each weight. Unless `exact`, block formats are multiplied by quantized activations.
std::string fused_linear(Pool& pool, bool exact, const float* x, int64_t rows, int64_t in, const Fusion& fusion,
                         const std::vector<Weight>& weights);

// Finds the `count` largest products with the first `limit` rows of a weight, largest first, the lower row first if
// two are equal: values and ids [rows, count]. They equal, to the last bit, those of `fused_linear` with 16-bit
// activations on a few rows.
std::string top(Pool& pool, std::string_view encoding, const float* x, int64_t rows, int64_t in, const uint8_t* packed,
                int64_t packed_size, int64_t out, int64_t limit, int64_t count, float* values, int32_t* ids);

// `fused_linear` for one split weight (ops/split.h), with nothing fused.
std::string split_product(Pool& pool, const float* x, int64_t rows, int64_t in, const Weight& weight);

// y[n, width] = w[ids]; NaN for an id outside the table.
std::string rows(Pool& pool, std::string_view encoding, const uint8_t* packed, int64_t packed_size, const int32_t* ids,
                 int64_t n, float* y, int64_t width);

// Normalizes and rotates, computes y = softmax(cap(q k)) v over the positions of `AttentionArgs`, and stores the new
// keys and values. New keys and values are rounded to the cache's type before any query attends to them. The scratch
// pointers need not be set.
template <class Number>  // float or Bfloat16
std::string attention(Pool& pool, AttentionArgs args, KVCache<Number> cache);

// Computes h of every token, by the equations of `RgLruArgs`.
template <class Number>  // float or Bfloat16
std::string rg_lru(Pool& pool, const RgLruArgs<Number>& args);

// Computes the losses and gradients of `CrossEntropyArgs`; they depend on the number of threads in the last bits.
std::string cross_entropy(Pool& pool, const CrossEntropyArgs& args);

}  // namespace gemwright
