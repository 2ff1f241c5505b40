// The operations, whole: sizes checked, work shared out, kernels called. Nothing here knows XLA.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attention.h"
#include "parallel.h"
#include "recurrence.h"

namespace gemwright {

// Each returns what is wrong with the arguments in one sentence, or an empty string once the result is written.

// A weight [out, in], and where its product goes: y[rows, out] = x[rows, in] . w^T.
struct Weight {
  std::string_view encoding;
  const uint8_t* packed;
  int64_t packed_size;
  int64_t out;
  float* y;
};

// What is done to x before it is multiplied, and to y after; null where nothing is.
struct Around {
  const float* gain;       // [in]: x becomes x / rms(x) * (1 + gain)
  const float* gate;       // [rows, in]: x becomes gelu(gate) * x
  const float* post_gain;  // [out]: y becomes y / rms(y) * (1 + post_gain), ...
  const float* residual;   // [rows, out]: ... and is added to these
  float eps;               // of the norms
  bool precise;            // activations of 16 bits, as the sum of two of 8; not if a weight is of plain floats
};

// Multiplies x by each weight. Unless `exact`, block formats meet activations of 8 bits.
std::string products(Pool& pool, bool exact, const float* x, int64_t rows, int64_t in, const Around& around,
                     const std::vector<Weight>& weights);

// The `count` largest of the products with the first `limit` rows of a weight, best first and the lower row first
// where two are equal: values and ids [rows, count]. They are the very numbers that `products`, precise,
// gives for the weight, a few rows at a time.
std::string top(Pool& pool, std::string_view encoding, const float* x, int64_t rows, int64_t in, const uint8_t* packed,
                int64_t packed_size, int64_t out, int64_t limit, int64_t count, float* values, int32_t* ids);

// `products` for one split weight (split.h) with nothing around it.
std::string split_product(Pool& pool, const float* x, int64_t rows, int64_t in, const Weight& weight);

// y[n, width] = w[ids]; NaN where an id is outside the table.
std::string rows(Pool& pool, std::string_view encoding, const uint8_t* packed, int64_t packed_size,
                 const int32_t* ids, int64_t n, float* y, int64_t width);

// Normalises and rotates, mixes values, y = softmax(cap(q k)) v, by the positions of `AttentionArgs`, and stores the
// new keys and values. What a query sees is rounded as the ring is. Scratch need not be set.
template <class Number>  // float or Bfloat16
std::string attention(Pool& pool, AttentionArgs args, Ring<Number> ring);

// The recurrent unit: h of every token, by the equations of `RgLruArgs`.
template <class Number>  // float or Bfloat16
std::string rg_lru(Pool& pool, const RgLruArgs<Number>& args);

}  // namespace gemwright
