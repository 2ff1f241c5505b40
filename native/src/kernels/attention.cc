// Attention kernels, compiled once for each instruction set.
#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

constexpr int64_t kKeyBlock = 32;  // keys that stay in the first-level cache for all queries
static_assert(kRows <= kAttentionRows);

// Prepares one head: y = rotate(x / rms(x) * (1 + gain)) * scale; no norm if `gain` is null.
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

void prepare(const AttentionArgs& a, int64_t sequence, int64_t token) {
  const int64_t at = sequence * a.tokens + token, group = a.group();
  const float* rotation = a.rotation + at * a.rotated;
  for (int64_t n = 0; n < a.heads; ++n) {
    const int64_t query = (sequence * a.kv_heads + n / group) * a.tokens * group + token * group + n % group;
    prepare_head(a.q + (at * a.heads + n) * a.width, a.q_gain, a.eps, rotation, a.rotated, a.width, a.scale,
                 a.queries + query * a.width);
  }
  for (int64_t k = 0; k < a.kv_heads; ++k) {
    prepare_head(a.k + (at * a.kv_heads + k) * a.width, a.k_gain, a.eps, rotation, a.rotated, a.width, 1.0f,
                 a.new_keys + ((sequence * a.kv_heads + k) * a.tokens + token) * a.width);
  }
}

void narrow(const float* from, int64_t count, float* to) { std::memcpy(to, from, count * sizeof(float)); }
void narrow(const float* from, int64_t count, Bfloat16* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40;  // rounding could turn a NaN into infinity
    to[i].bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

template <class Number>
void interleave_keys(const Number* const* keys, int64_t count, int64_t width, float* panel) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int64_t i = 0; i < width; ++i) panel[i * kLanes + lane] = lane < count ? widen(keys[lane][i]) : 0.0f;
  }
}

// Turns scores [low, high) of a query into weights that sum to one, and clears the others of [begin, end).
void softmax(float* s, int64_t begin, int64_t low, int64_t high, int64_t end, float cap) {
  for (int64_t i = begin; i < low; ++i) s[i] = 0.0f;
  for (int64_t i = larger(begin, high); i < end; ++i) s[i] = 0.0f;
  if (high <= low) return;
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

// Computes columns [column, last) of `Rows` outputs: the weighted sum of values [begin, end).
template <int Rows, class Number>
void sum_value_rows(const AttendedKV<Number>& attended, const float* weights, int64_t stride, int64_t begin,
                    int64_t end, int64_t width, float* const* y, int64_t column, int64_t last) {
  constexpr int kColumns = kSums / Rows;
  int64_t at = 0;
  bool first = true;
  for (const KVSpan<Number>& span : attended.spans) {
    const int64_t from = larger(begin - at, 0), count = smaller(end - at, span.count) - from;
    if (count > 0 || (first && &span == attended.spans + 2)) {  // an empty sum is zero
      const float* weight = weights + at + from;
      const Number* values = span.values + from * width;
      int64_t c = column;
      for (; last - c >= kColumns * kLanes; c += kColumns * kLanes) {
        weighted_sum<Rows, kColumns>(weight, stride, values, count, width, y, c, first);
      }
      for (; c < last; c += kLanes) weighted_sum<Rows, 1>(weight, stride, values, count, width, y, c, first);
      first = false;
    }
    at += span.count;
  }
}

// Returns the output of query r of T * G of a sequence and head.
inline float* output(const AttentionArgs& a, int64_t sequence, int64_t head, int64_t r) {
  const int64_t group = a.group();
  return a.y + ((sequence * a.tokens + r / group) * a.heads + head * group + r % group) * a.width;
}

// The range [low, high) of keys that query r of T * G attends to.
struct KeyRange {
  int64_t low, high;
};
inline KeyRange visible_keys(const AttentionArgs& a, int64_t sequence, int64_t begin, int64_t r) {
  const int64_t position = a.positions[sequence * a.tokens + r / a.group()], high = position - begin + 1;
  return position < 0 ? KeyRange{0, 0} : KeyRange{larger(high - a.window, 0), high};
}

template <int Rows, class Number>
void attend_tile(const AttentionArgs& a, const AttendedKV<Number>& attended, const float* panels, int64_t sequence,
                 int64_t head, int64_t first, float* scores) {
  const int64_t stride = (attended.count + kLanes - 1) / kLanes * kLanes;
  const float* q = a.queries + ((sequence * a.kv_heads + head) * a.tokens * a.group() + first) * a.width;
  KeyRange keys[Rows];
  int64_t begin = attended.count, end = 0;
  float* y[Rows];
  for (int r = 0; r < Rows; ++r) {
    y[r] = output(a, sequence, head, first + r);
    keys[r] = visible_keys(a, sequence, attended.begin, first + r);
    if (keys[r].high > 0) begin = smaller(begin, keys[r].low), end = larger(end, keys[r].high);
  }
  begin = begin / kLanes * kLanes;
  for (int64_t key = begin; key < end; key += kLanes) {
    const float* panel = panels + key * a.width;
    Floats sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = zero();
    for (int64_t i = 0; i < a.width; ++i) {
      const Floats k = load(panel + i * kLanes);
      for (int r = 0; r < Rows; ++r) sum[r] = multiply_add(k, broadcast(q[r * a.width + i]), sum[r]);
    }
    for (int r = 0; r < Rows; ++r) store(scores + r * stride + key, sum[r]);
  }
  for (int r = 0; r < Rows; ++r) softmax(scores + r * stride, begin, keys[r].low, keys[r].high, end, a.cap);
  sum_value_rows<Rows>(attended, scores, stride, begin, end, a.width, y, 0, a.width);
}

template <class Number>
void attend(const AttentionArgs& a, const AttendedKV<Number>& attended, const float* panels, int64_t sequence,
            int64_t head, int64_t first, int64_t last, float* scores) {
  for_each_tile(first, last,
                [&](int64_t tile, auto n) { attend_tile<n>(a, attended, panels, sequence, head, tile, scores); });
}

template <int Rows, class Number>
inline void score_tile(const float* queries, int64_t width, const Number* keys, int64_t count, float* scores,
                       int64_t total) {
  for (int64_t key = 0; key < count; ++key, keys += width) {
    Floats sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = zero();
    for (int64_t i = 0; i < width; i += kLanes) {
      prefetch_row<kLanes * sizeof(Number)>(keys + i, width);
      const Floats k = load(keys + i);
      for (int r = 0; r < Rows; ++r) sum[r] = multiply_add(k, load(queries + r * width + i), sum[r]);
    }
    for (int r = 0; r < Rows; ++r) scores[r * total + key] = add_lanes(sum[r]);
  }
}

template <class Number>
void score(const float* queries, int64_t rows, int64_t width, const Number* keys, int64_t count, float* scores,
           int64_t total) {
  for (int64_t key = 0; key < count; key += kKeyBlock) {
    for_each_tile(0, rows, [&](int64_t r, auto n) {
      score_tile<n>(queries + r * width, width, keys + key * width, smaller(count - key, kKeyBlock),
                    scores + r * total + key, total);
    });
  }
}

void softmax_scores(const AttentionArgs& a, int64_t begin, int64_t count, int64_t sequence, int64_t first, int64_t last,
                    float* scores, int64_t total) {
  for (int64_t r = first; r < last; ++r) {
    const KeyRange keys = visible_keys(a, sequence, begin, r);
    softmax(scores + r * total, 0, keys.low, keys.high, count, a.cap);
  }
}

template <class Number>
void sum_values(const AttentionArgs& a, const AttendedKV<Number>& attended, const float* weights, int64_t total,
                int64_t sequence, int64_t head, int64_t first, int64_t last) {
  for_each_tile(0, a.tokens * a.group(), [&](int64_t r, auto n) {
    float* y[n];
    for (int i = 0; i < n; ++i) y[i] = output(a, sequence, head, r + i);
    sum_value_rows<n>(attended, weights + r * total, total, 0, attended.count, a.width, y, first, last);
  });
}

template <class Number>
constexpr CacheKernels<Number> cache_kernels() {
  return {narrow, interleave_keys<Number>, attend<Number>, score<Number>, sum_values<Number>};
}

}  // namespace

extern const AttentionKernels attention;
constexpr AttentionKernels attention{prepare, softmax_scores, cache_kernels<float>(), cache_kernels<Bfloat16>()};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
