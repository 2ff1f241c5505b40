// The real-gated linear recurrent unit of Griffin (arXiv:2402.19427, section 2.4), for one token or many.
#pragma once

#include <cstdint>

#include "kernels/format.h"

namespace gemwright {

// One call: B sequences of T new tokens, R channels in blocks. A gate is block-diagonal.
//
//   gate_t = sigmoid(u_t W + b), for the input and for the decay
//   a_t = exp(-8 softplus(decay) decay_gate_t)
//   h_t = a_t h_{t-1} + sqrt(1 - a_t^2) input_gate_t u_t
//
// At position 0, h is input_gate u. Padding leaves h unchanged.
template <class Number>  // of the gates' weights: float or Bfloat16
struct RgLruArgs {
  int64_t batch, tokens, blocks, width;            // width: channels per block
  const float* u;                                  // [B, T, R]
  const int32_t* positions;                        // [B, T], negative for padding
  const float* initial;                            // [B, R], h before the first token
  const Number *input_gate, *decay_gate;           // [blocks, in, out]
  const float *input_gate_bias, *decay_gate_bias;  // [R]
  const float* decay;                              // [R]
  float* h;                                        // [B, T, R]
};

struct RecurrenceKernels {
  // Computes channels [first, last) of a block, for all sequences and tokens.
  void (*floats)(const RgLruArgs<float>&, int64_t block, int64_t first, int64_t last);
  void (*bfloats)(const RgLruArgs<Bfloat16>&, int64_t block, int64_t first, int64_t last);

  auto of(float) const { return floats; }
  auto of(Bfloat16) const { return bfloats; }
};

}  // namespace gemwright
