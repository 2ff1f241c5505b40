// Attention over a ring of keys and values: what the operation and its kernels say to each other.
#pragma once

#include <cstdint>

#include "format.h"

namespace gemwright {

// One call: T new tokens for each of B rows of a batch, N query heads, K key/value heads, H values in a head.
struct AttentionArgs {
  int64_t batch, tokens, heads, kv_heads, width;
  const float *q, *k, *v;                // [B, T, N, H], [B, T, K, H] twice, as they were projected
  const int32_t *positions, *lengths;    // [B, T], -1 for padding; [B] tokens before these
  const float* rotation;                 // [B, T, 2, rotated / 2]: cosines, sines
  int64_t rotated;                       // values at the front of a head that are rotated
  const float *q_gain, *k_gain;          // [H] of the norms, or null
  int64_t window;                        // tokens that a query sees, itself included
  float scale, cap, eps;                 // of scores, 0 for no cap; of the norms
  float* y;                              // [B, T, N, H]

  float* queries;   // [B, K, T * G, H] scratch: normalised, rotated and scaled
  float* new_keys;  // [B, K, T, H] scratch: normalised and rotated

  int64_t group() const { return heads / kv_heads; }
};

// The keys and values of a row's last S tokens, that of position p in slot p % S: float or Bfloat16, which is what
// `Number` is below too. Kernels compute in float.
template <class Number>
struct Ring {
  Number *keys, *values;  // [B, K, S, H]
  int64_t slots;
};

// Keys and values that stand together, in the order of their positions.
template <class Number>
struct Stretch {
  const Number *keys, *values;
  int64_t count;
};

// All that the queries of one row of the batch and one head see: two stretches of the ring, then the new tokens.
template <class Number>
struct Past {
  int64_t begin, count;  // the first one's position, and how many
  Stretch<Number> stretches[3];
};

template <class Number>
struct RingKernels {
  // Rounds to nearest even.
  void (*narrow)(const float* from, int64_t count, Number* to);
  // Sixteen keys [count <= 16, H] side by side; missing ones are zero.
  void (*panel)(const Number* const* keys, int64_t count, int64_t width, float* panel);
  // Queries [first, last) of T * G against keys side by side, [count / 16, H, 16], and the values of their past;
  // `scores` has room for kAttentionRows * (count + 16).
  void (*attend)(const AttentionArgs&, const Past<Number>&, const float* panels, int64_t row, int64_t head,
                 int64_t first, int64_t last, float* scores);
  // The same for a few queries, without panels: their scores [rows, total] against a part of a stretch, ...
  void (*score)(const float* queries, int64_t rows, int64_t width, const Number* keys, int64_t count, float* scores,
                int64_t total);
  // ... and, after `weigh`, the columns [first, last) of their results, in 16s.
  void (*mix)(const AttentionArgs&, const Past<Number>&, const float* weights, int64_t total, int64_t row, int64_t head,
              int64_t first, int64_t last);
};

struct AttentionKernels {
  // Queries and keys of one token.
  void (*prepare)(const AttentionArgs&, int64_t row, int64_t token);
  // Queries [first, last) of T * G: scores [T * G, total] against `count` keys from position `begin` become weights.
  void (*weigh)(const AttentionArgs&, int64_t begin, int64_t count, int64_t row, int64_t first, int64_t last,
                float* scores, int64_t total);
  RingKernels<float> floats;
  RingKernels<Bfloat16> bfloats;

  const RingKernels<float>& of(float) const { return floats; }
  const RingKernels<Bfloat16>& of(Bfloat16) const { return bfloats; }
};

constexpr int kAttentionRows = 8;  // queries that share a panel of keys at most

}  // namespace gemwright
