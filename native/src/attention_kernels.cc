// The kernels of attention, compiled once for each instruction set as those in kernels.cc are.
#include <cstring>
#include <utility>

#include "exponential.h"
#include "kernels.h"

#define GEMWRIGHT_STRING_(x) #x
#define GEMWRIGHT_STRING(x) GEMWRIGHT_STRING_(x)
#include GEMWRIGHT_SIMD_HEADER

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

// Accumulators that fit the registers: eight queries of sixteen lanes, or four where a lane vector is two registers.
constexpr int kRows = kTileRows < 8 ? 4 : 8;
constexpr int kColumns = 16 / kRows / (kTileRows < 8 ? 4 : 1);
static_assert(kRows <= kAttentionRows && kColumns >= 1);

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Cuts rows [row, end) into tiles of kRows, then of smaller powers of two: body(first row, constant).
template <class Body>
inline void for_each_tile(int64_t row, int64_t end, Body body) {
  for (; end - row >= kRows; row += kRows) body(row, std::integral_constant<int, kRows>{});
  if constexpr (kRows > 4) {
    if (end - row >= 4) body(row, std::integral_constant<int, 4>{}), row += 4;
  }
  if (end - row >= 2) body(row, std::integral_constant<int, 2>{}), row += 2;
  if (end - row >= 1) body(row, std::integral_constant<int, 1>{});
}

// One head: x / rms(x) * (1 + gain) if there is a gain, rotated, times `scale`.
void prepare_head(const float* x, const float* gain, float eps, const float* rotation, int64_t rotated, int64_t width,
                  float scale, float* y) {
  float factor = 1.0f;
  if (gain != nullptr) {
    float squares[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) squares[lane] += x[i + lane] * x[i + lane];
    }
    float sum = 0.0f;
    for (; i < width; ++i) sum += x[i] * x[i];
    for (float square : squares) sum += square;
    factor = 1.0f / __builtin_sqrtf(sum / float(width) + eps);
    for (i = 0; i < width; ++i) y[i] = x[i] * factor * (1.0f + gain[i]);
  } else {
    std::memcpy(y, x, width * sizeof(float));
  }
  const int64_t half = rotated / 2;
  const float *cos = rotation, *sin = rotation + half;
  for (int64_t i = 0; i < half; ++i) {
    const float first = y[i], second = y[half + i];
    y[i] = first * cos[i] - second * sin[i];
    y[half + i] = second * cos[i] + first * sin[i];
  }
  if (scale != 1.0f) {
    for (int64_t i = 0; i < width; ++i) y[i] *= scale;
  }
}

void prepare(const AttentionArgs& a, int64_t row, int64_t token) {
  const int64_t at = row * a.tokens + token, group = a.group();
  const float* rotation = a.rotation + at * a.rotated;
  for (int64_t n = 0; n < a.heads; ++n) {
    const int64_t query = (row * a.kv_heads + n / group) * a.tokens * group + token * group + n % group;
    prepare_head(a.q + (at * a.heads + n) * a.width, a.q_gain, a.eps, rotation, a.rotated, a.width, a.scale,
                 a.queries + query * a.width);
  }
  for (int64_t k = 0; k < a.kv_heads; ++k) {
    prepare_head(a.k + (at * a.kv_heads + k) * a.width, a.k_gain, a.eps, rotation, a.rotated, a.width, 1.0f,
                 a.new_keys + ((row * a.kv_heads + k) * a.tokens + token) * a.width);
  }
}

void panel(const float* const* keys, int64_t count, int64_t width, float* panel) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int64_t i = 0; i < width; ++i) panel[i * kLanes + lane] = lane < count ? keys[lane][i] : 0.0f;
  }
}

// Turns the scores [low, high) of a query into weights that sum to one, and clears the others of [begin, end).
void softmax(float* s, int64_t begin, int64_t low, int64_t high, int64_t end, float cap) {
  for (int64_t i = begin; i < low; ++i) s[i] = 0.0f;
  for (int64_t i = high; i < end; ++i) s[i] = 0.0f;
  float* const x = s + low;
  const int64_t count = high - low;
  if (cap > 0) {
    for (int64_t i = 0; i < count; ++i) x[i] = capped(x[i], cap);
  }
  float tops[kLanes];
  for (float& top : tops) top = x[0];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) tops[lane] = x[i + lane] > tops[lane] ? x[i + lane] : tops[lane];
  }
  float top = x[0];
  for (; i < count; ++i) top = x[i] > top ? x[i] : top;
  for (float other : tops) top = other > top ? other : top;
  for (i = 0; i < count; ++i) x[i] = exponential(x[i] - top);
  float sums[kLanes] = {}, sum = 0.0f;
  for (i = 0; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane];
  }
  for (; i < count; ++i) sum += x[i];
  for (float part : sums) sum += part;
  const float share = 1.0f / sum;
  for (i = 0; i < count; ++i) x[i] *= share;
}

// Sixteen columns each of `Rows` outputs: weights [Rows, stride], values [count, width].
template <int Rows, int Columns>
inline void mix_tile(const float* weights, int64_t stride, const float* values, int64_t count, int64_t width,
                     float* const* y, bool first) {
  Floats sum[Rows][Columns];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) sum[r][c] = first ? zero() : load(y[r] + c * kLanes);
  }
  for (int64_t i = 0; i < count; ++i, values += width) {
    Floats value[Columns];
    for (int c = 0; c < Columns; ++c) value[c] = load(values + c * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const Floats weight = broadcast(weights[r * stride + i]);
      for (int c = 0; c < Columns; ++c) sum[r][c] = multiply_add(weight, value[c], sum[r][c]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) store(y[r] + c * kLanes, sum[r][c]);
  }
}

// The columns [column, end) of `Rows` outputs, whose rows begin at y[r].
template <int Rows>
inline void mix_columns(const float* weights, int64_t stride, const float* values, int64_t count, int64_t width,
                        float* const* y, int64_t column, int64_t end, bool first) {
  while (column < end) {
    float* at[Rows];
    for (int r = 0; r < Rows; ++r) at[r] = y[r] + column;
    if (end - column >= kColumns * kLanes) {
      mix_tile<Rows, kColumns>(weights, stride, values + column, count, width, at, first);
      column += kColumns * kLanes;
    } else {
      mix_tile<Rows, 1>(weights, stride, values + column, count, width, at, first);
      column += kLanes;
    }
  }
}

template <int Rows>
void attend_tile(const AttentionArgs& a, const Past& past, int64_t row, int64_t head, int64_t first, float* scores) {
  const int64_t group = a.group(), stride = (past.count + kLanes - 1) / kLanes * kLanes;
  const float* q = a.queries + ((row * a.kv_heads + head) * a.tokens * group + first) * a.width;
  int64_t low[Rows], high[Rows], begin = past.count, end = 0;
  float* y[Rows];
  for (int r = 0; r < Rows; ++r) {
    const int64_t token = (first + r) / group, position = a.positions[row * a.tokens + token];
    y[r] = a.y + ((row * a.tokens + token) * a.heads + head * group + (first + r) % group) * a.width;
    high[r] = position < 0 ? 0 : position - past.begin + 1;
    low[r] = position < 0 ? 0 : larger(high[r] - a.window, 0);
    if (position >= 0) begin = smaller(begin, low[r]), end = larger(end, high[r]);
  }
  begin = begin / kLanes * kLanes;
  for (int64_t key = begin; key < end; key += kLanes) {
    const float* panel = past.panels + key * a.width;
    Floats sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = zero();
    for (int64_t i = 0; i < a.width; ++i) {
      const Floats k = load(panel + i * kLanes);
      for (int r = 0; r < Rows; ++r) sum[r] = multiply_add(k, broadcast(q[r * a.width + i]), sum[r]);
    }
    for (int r = 0; r < Rows; ++r) store(scores + r * stride + key, sum[r]);
  }
  for (int r = 0; r < Rows; ++r) {
    if (low[r] < high[r]) {
      softmax(scores + r * stride, begin, low[r], high[r], end, a.cap);
    } else {
      for (int64_t i = begin; i < end; ++i) scores[r * stride + i] = 0.0f;
    }
  }
  mix_columns<Rows>(scores + begin, stride, past.values + begin * a.width, larger(end - begin, 0), a.width, y, 0,
                    a.width, true);
}

void attend(const AttentionArgs& a, const Past& past, int64_t row, int64_t head, int64_t first, int64_t last,
            float* scores) {
  for_each_tile(first, last, [&](int64_t tile, auto n) { attend_tile<n>(a, past, row, head, tile, scores); });
}

template <int Rows>
inline void score_tile(const float* queries, int64_t width, const float* keys, int64_t count, float* scores,
                       int64_t total) {
  for (int64_t key = 0; key < count; ++key, keys += width) {
    Floats sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = zero();
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats k = load(keys + i);
      for (int r = 0; r < Rows; ++r) sum[r] = multiply_add(k, load(queries + r * width + i), sum[r]);
    }
    for (int r = 0; r < Rows; ++r) scores[r * total + key] = add_lanes(sum[r]);
  }
}

void score(const float* queries, int64_t group, int64_t width, const float* keys, int64_t count, float* scores,
           int64_t total) {
  for_each_tile(0, group, [&](int64_t r, auto n) {
    score_tile<n>(queries + r * width, width, keys, count, scores + r * total, total);
  });
}

void weigh(float* scores, int64_t count, float cap) { softmax(scores, 0, 0, count, count, cap); }

void mix(const float* weights, int64_t group, int64_t total, const Stretch* stretches, int64_t width, int64_t first,
         int64_t last, float* y) {
  for_each_tile(0, group, [&](int64_t r, auto n) {
    float* at[n];
    for (int i = 0; i < n; ++i) at[i] = y + (r + i) * width;
    const float* weight = weights + r * total;
    mix_columns<n>(weight, total, stretches[0].values, stretches[0].count, width, at, first, last, true);
    if (stretches[1].count > 0) {
      mix_columns<n>(weight + stretches[0].count, total, stretches[1].values, stretches[1].count, width, at, first,
                     last, false);
    }
  });
}

}  // namespace

extern const AttentionKernels attention;
const AttentionKernels attention{prepare, panel, attend, score, weigh, mix};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
