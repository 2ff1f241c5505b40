// Attention over a ring of keys and values: what the operation and its kernels say to each other.
#pragma once

#include <cstdint>

namespace gemwright {

// One call: T new tokens for each of B rows of a batch, N query heads, K key/value heads, H values in a head.
// A ring holds the keys and values of a row's last S tokens, that of position p in slot p % S.
struct AttentionArgs {
  int64_t batch, tokens, heads, kv_heads, width, slots;
  const float *q, *k, *v;                // [B, T, N, H], [B, T, K, H] twice, as they were projected
  const int32_t *positions, *lengths;    // [B, T], -1 for padding; [B] tokens before these
  const float* rotation;                 // [B, T, 2, rotated / 2]: cosines, sines
  int64_t rotated;                       // values at the front of a head that are rotated
  const float *q_gain, *k_gain;          // [H] of the norms, or null
  int64_t window;                        // tokens that a query sees, itself included
  float scale, cap, eps;                 // of scores, 0 for no cap; of the norms
  float *ring_keys, *ring_values;        // [B, K, S, H]
  float* y;                              // [B, T, N, H]

  float* queries;   // [B, K, T * G, H] scratch: normalised, rotated and scaled
  float* new_keys;  // [B, K, T, H] scratch: normalised and rotated

  int64_t group() const { return heads / kv_heads; }
};

// The keys that the queries of one row of the batch and one head see, in the order of their positions.
struct Past {
  int64_t begin, count;  // the first one's position, and how many
  const float* panels;   // [count / 16, H, 16] keys, sixteen side by side
  const float* values;   // [count, H]
};

// A stretch of a ring: neighbouring slots, in the order of their positions.
struct Stretch {
  const float *keys, *values;
  int64_t count;
};

struct AttentionKernels {
  // Queries and keys of one token.
  void (*prepare)(const AttentionArgs&, int64_t row, int64_t token);
  // Sixteen keys [count <= 16, H] side by side; missing ones are zero.
  void (*panel)(const float* const* keys, int64_t count, int64_t width, float* panel);
  // Queries [first, last) of T * G against their past; `scores` has room for kAttentionRows * (count + 16).
  void (*attend)(const AttentionArgs&, const Past&, int64_t row, int64_t head, int64_t first, int64_t last,
                 float* scores);
  // The G queries of one new token, whose own key is in the ring: scores [G, total] of a part of a stretch, ...
  void (*score)(const float* queries, int64_t group, int64_t width, const float* keys, int64_t count, float* scores,
                int64_t total);
  // ... then weights out of one query's scores, ...
  void (*weigh)(float* scores, int64_t count, float cap);
  // ... and the columns [first, last) of y [G, H], in 16s.
  void (*mix)(const float* weights, int64_t group, int64_t total, const Stretch* stretches, int64_t width,
              int64_t first, int64_t last, float* y);
};

constexpr int kAttentionRows = 8;  // queries that share a panel of keys at most

}  // namespace gemwright
