// The interface between the attention operation and its kernels.
#pragma once

#include <cstdint>

#include "kernels/format.h"

namespace gemwright {

// One call: B sequences of T new tokens, N query heads, K key/value heads, H values per head, G = N / K.
struct AttentionArgs {
  int64_t batch, tokens, heads, kv_heads, width;
  const float *q, *k, *v;              // [B, T, N, H], [B, T, K, H] twice, as projected
  const int32_t *positions, *lengths;  // [B, T], -1 for padding; [B] tokens before these
  const float* rotation;               // [B, T, 2, rotated / 2]: cosines, sines
  int64_t rotated;                     // leading values of a head that are rotated
  const float *q_gain, *k_gain;        // [H], of the norms, or null
  int64_t window;                      // tokens that a query attends to, itself included
  float scale, cap, eps;               // scale and soft cap (0 for none) of scores; eps of the norms
  float* y;                            // [B, T, N, H]

  float* queries;   // scratch [B, K, T * G, H]: normalized, rotated and scaled
  float* new_keys;  // scratch [B, K, T, H]: normalized and rotated

  int64_t group() const { return heads / kv_heads; }
};

// A rotating cache of the keys and values of each sequence's last S tokens: position p in slot p % S. `Number` is float
// or Bfloat16, here and below; kernels compute in float.
template <class Number>
struct KVCache {
  Number *keys, *values;  // [B, K, S, H]
  int64_t slots;
};

// Consecutive keys and values, in the order of their positions.
template <class Number>
struct KVSpan {
  const Number *keys, *values;
  int64_t count;
};

// The keys and values for the queries of one sequence and head: two spans of the cache, then the new tokens.
template <class Number>
struct AttendedKV {
  int64_t begin, count;  // position of the first, number of all
  KVSpan<Number> spans[3];
};

template <class Number>
struct CacheKernels {
  // Rounds to nearest even.
  void (*narrow)(const float* from, int64_t count, Number* to);
  // Interleaves sixteen keys [count <= 16, H] into a panel [H, 16]; missing ones are zero.
  void (*interleave_keys)(const Number* const* keys, int64_t count, int64_t width, float* panel);
  // Attends from queries [first, last) of T * G, with keys in panels [count / 16, H, 16]. `scores` has room for
  // kAttentionRows * (count + 16).
  void (*attend)(const AttentionArgs&, const AttendedKV<Number>&, const float* panels, int64_t sequence, int64_t head,
                 int64_t first, int64_t last, float* scores);
  // Without panels, for a few queries: computes scores [rows, total] with `count` keys of a span.
  void (*score)(const float* queries, int64_t rows, int64_t width, const Number* keys, int64_t count, float* scores,
                int64_t total);
  // Then, after `softmax_scores`, columns [first, last) of the outputs; both are multiples of 16.
  void (*sum_values)(const AttentionArgs&, const AttendedKV<Number>&, const float* weights, int64_t total,
                     int64_t sequence, int64_t head, int64_t first, int64_t last);
};

struct AttentionKernels {
  // Normalizes, rotates and scales the queries and keys of one token.
  void (*prepare)(const AttentionArgs&, int64_t sequence, int64_t token);
  // For queries [first, last) of T * G, turns scores [T * G, total] with `count` keys from position `begin` into
  // weights.
  void (*softmax_scores)(const AttentionArgs&, int64_t begin, int64_t count, int64_t sequence, int64_t first,
                         int64_t last, float* scores, int64_t total);
  CacheKernels<float> floats;
  CacheKernels<Bfloat16> bfloats;

  const CacheKernels<float>& of(float) const { return floats; }
  const CacheKernels<Bfloat16>& of(Bfloat16) const { return bfloats; }
};

constexpr int kAttentionRows = 8;  // most queries that share a panel of keys

}  // namespace gemwright
