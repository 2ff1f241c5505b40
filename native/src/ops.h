// The operations, whole: sizes checked, work shared out, kernels called. Nothing here knows XLA.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "attention.h"
#include "parallel.h"

namespace gemwright {

// Each returns what is wrong with the arguments in one sentence, or an empty string once the result is written.
//
// y[rows, out] = x[rows, in] . w[out, in]^T. Unless `exact`, block formats meet activations of 8 bits.
std::string matmul(Pool& pool, std::string_view encoding, bool exact, const float* x, int64_t rows, int64_t in,
                   const uint8_t* packed, int64_t packed_size, float* y, int64_t out);

// y[n, width] = w[ids]; NaN where an id is outside the table.
std::string rows(Pool& pool, std::string_view encoding, const uint8_t* packed, int64_t packed_size,
                 const int32_t* ids, int64_t n, float* y, int64_t width);

// Normalises, rotates and stores the new keys, then mixes values: y = softmax(cap(q k)) v, by the positions of
// `AttentionArgs`. Scratch need not be set.
std::string attention(Pool& pool, AttentionArgs args);

}  // namespace gemwright
