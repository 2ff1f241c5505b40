// The kernels of attention, compiled once for each instruction set as those in kernels.cc are.
#include "kernels.h"

#define GEMWRIGHT_STRING_(x) #x
#define GEMWRIGHT_STRING(x) GEMWRIGHT_STRING_(x)
#include GEMWRIGHT_SIMD_HEADER
#include "tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

constexpr int64_t kNear = 32;  // keys that stay in the first-level cache while queries pass over them
static_assert(kRows <= kAttentionRows);

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

void narrow(const float* from, int64_t count, float* to) { std::memcpy(to, from, count * sizeof(float)); }
void narrow(const float* from, int64_t count, Bfloat16* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40;  // rounding could carry a NaN to infinity
    to[i].bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

template <class Number>
void panel(const Number* const* keys, int64_t count, int64_t width, float* panel) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int64_t i = 0; i < width; ++i) panel[i * kLanes + lane] = lane < count ? widen(keys[lane][i]) : 0.0f;
  }
}

// Turns the scores [low, high) of a query into weights that sum to one, and clears the others of [begin, end).
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

// The columns [column, last) of `Rows` outputs: the sum of the values [begin, end) of a past, times weights.
template <int Rows, class Number>
void mix_rows(const Past<Number>& past, const float* weights, int64_t stride, int64_t begin, int64_t end,
              int64_t width, float* const* y, int64_t column, int64_t last) {
  constexpr int kColumns = kSums / Rows;
  int64_t at = 0;
  bool first = true;
  for (const Stretch<Number>& stretch : past.stretches) {
    const int64_t from = larger(begin - at, 0), count = smaller(end - at, stretch.count) - from;
    if (count > 0 || (first && &stretch == past.stretches + 2)) {  // the sum of none is zero
      const float* weight = weights + at + from;
      const Number* values = stretch.values + from * width;
      int64_t c = column;
      for (; last - c >= kColumns * kLanes; c += kColumns * kLanes) {
        weighted_sum<Rows, kColumns>(weight, stride, values, count, width, y, c, first);
      }
      for (; c < last; c += kLanes) weighted_sum<Rows, 1>(weight, stride, values, count, width, y, c, first);
      first = false;
    }
    at += stretch.count;
  }
}

// The result of query r of T * G of a row and head.
inline float* result(const AttentionArgs& a, int64_t row, int64_t head, int64_t r) {
  const int64_t group = a.group();
  return a.y + ((row * a.tokens + r / group) * a.heads + head * group + r % group) * a.width;
}

// The keys [low, high) of a past that query r of T * G sees.
struct Seen {
  int64_t low, high;
};
inline Seen seen(const AttentionArgs& a, int64_t row, int64_t begin, int64_t r) {
  const int64_t position = a.positions[row * a.tokens + r / a.group()], high = position - begin + 1;
  return position < 0 ? Seen{0, 0} : Seen{larger(high - a.window, 0), high};
}

template <int Rows, class Number>
void attend_tile(const AttentionArgs& a, const Past<Number>& past, const float* panels, int64_t row, int64_t head,
                 int64_t first, float* scores) {
  const int64_t stride = (past.count + kLanes - 1) / kLanes * kLanes;
  const float* q = a.queries + ((row * a.kv_heads + head) * a.tokens * a.group() + first) * a.width;
  Seen keys[Rows];
  int64_t begin = past.count, end = 0;
  float* y[Rows];
  for (int r = 0; r < Rows; ++r) {
    y[r] = result(a, row, head, first + r);
    keys[r] = seen(a, row, past.begin, first + r);
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
  mix_rows<Rows>(past, scores, stride, begin, end, a.width, y, 0, a.width);
}

template <class Number>
void attend(const AttentionArgs& a, const Past<Number>& past, const float* panels, int64_t row, int64_t head,
            int64_t first, int64_t last, float* scores) {
  for_each_tile(first, last, [&](int64_t tile, auto n) { attend_tile<n>(a, past, panels, row, head, tile, scores); });
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
  for (int64_t key = 0; key < count; key += kNear) {
    for_each_tile(0, rows, [&](int64_t r, auto n) {
      score_tile<n>(queries + r * width, width, keys + key * width, smaller(count - key, kNear),
                    scores + r * total + key, total);
    });
  }
}

void weigh(const AttentionArgs& a, int64_t begin, int64_t count, int64_t row, int64_t first, int64_t last,
           float* scores, int64_t total) {
  for (int64_t r = first; r < last; ++r) {
    const Seen keys = seen(a, row, begin, r);
    softmax(scores + r * total, 0, keys.low, keys.high, count, a.cap);
  }
}

template <class Number>
void mix(const AttentionArgs& a, const Past<Number>& past, const float* weights, int64_t total, int64_t row,
         int64_t head, int64_t first, int64_t last) {
  for_each_tile(0, a.tokens * a.group(), [&](int64_t r, auto n) {
    float* y[n];
    for (int i = 0; i < n; ++i) y[i] = result(a, row, head, r + i);
    mix_rows<n>(past, weights + r * total, total, 0, past.count, a.width, y, first, last);
  });
}

template <class Number>
constexpr RingKernels<Number> of_ring() {
  return {narrow, panel<Number>, attend<Number>, score<Number>, mix<Number>};
}

}  // namespace

extern const AttentionKernels attention;
const AttentionKernels attention{prepare, weigh, of_ring<float>(), of_ring<Bfloat16>()};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
