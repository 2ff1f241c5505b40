// Kernels of the recurrent unit, compiled once for each instruction set.
#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

constexpr float kSharpness = 8.0f;            // c of the paper
constexpr int64_t kColumns = kSums * kLanes;  // most channels at a time: the accumulators of one row

inline float sigmoid(float x) {
  const float e = exponential(x < 0 ? x : -x), y = 1.0f / (1.0f + e);
  return x < 0 ? e * y : y;
}

// log(1 + e^x): 2 atanh(e / (2 + e)) + max(x, 0) with e = e^-|x|.
inline float softplus(float x) {
  const float e = exponential(x < 0 ? x : -x), s = e / (2.0f + e), t = s * s;
  float y = 1.0f / 15;
  y = y * t + 1.0f / 13;
  y = y * t + 1.0f / 11;
  y = y * t + 1.0f / 9;
  y = y * t + 1.0f / 7;
  y = y * t + 1.0f / 5;
  y = y * t + 1.0f / 3;
  y = y * t + 1.0f;
  return 2.0f * s * y + (x > 0 ? x : 0.0f);
}

// The parameters of some channels.
struct Channels {
  int64_t first, count;
  float rate[kColumns], input_bias[kColumns], decay_bias[kColumns];
};

// Computes u W for `Rows` rows from `row` on.
template <int Rows, class Number>
inline void multiply(const RgLruArgs<Number>& a, const Number* weight, int64_t block, const Channels& at, int64_t row,
                     float (*y)[kColumns]) {
  constexpr int kTileColumns = kSums / Rows;
  const int64_t all = a.blocks * a.width;
  const float* u = a.u + row * all + block * a.width;
  const Number* w = weight + block * a.width * a.width + at.first;
  float* to[Rows];
  for (int r = 0; r < Rows; ++r) to[r] = y[r];
  int64_t c = 0;
  for (; at.count - c >= kTileColumns * kLanes; c += kTileColumns * kLanes) {
    weighted_sum<Rows, kTileColumns>(u, all, w, a.width, a.width, to, c, true);
  }
  for (; at.count - c >= kLanes; c += kLanes) weighted_sum<Rows, 1>(u, all, w, a.width, a.width, to, c, true);
  for (; c < at.count; ++c) {
    for (int r = 0; r < Rows; ++r) {
      y[r][c] = 0.0f;
      for (int64_t i = 0; i < a.width; ++i) y[r][c] += u[r * all + i] * widen(w[i * a.width + c]);
    }
  }
}

inline void step(const Channels& at, int32_t position, const float* __restrict input, const float* __restrict decay,
                 const float* __restrict u, const float* __restrict before, float* __restrict h) {
  if (position < 0) {
    std::memcpy(h, before, at.count * sizeof(float));
  } else if (position == 0) {
    for (int64_t i = 0; i < at.count; ++i) h[i] = sigmoid(input[i] + at.input_bias[i]) * u[i];
  } else {
    for (int64_t i = 0; i < at.count; ++i) {
      const float lost = exponential_less_one(-at.rate[i] * sigmoid(decay[i] + at.decay_bias[i]));  // a - 1
      const float scale = __builtin_sqrtf(-lost * (2.0f + lost));                                   // of 1 - a^2
      h[i] = (1.0f + lost) * before[i] + scale * (sigmoid(input[i] + at.input_bias[i]) * u[i]);
    }
  }
}

template <class Number>
void rg_lru(const RgLruArgs<Number>& a, int64_t block, int64_t first, int64_t last) {
  const int64_t all = a.blocks * a.width, rows = a.batch * a.tokens;
  const int64_t most =
      rows < kRows ? kColumns : kColumns / kRows;  // with many rows fewer columns, whose weights stay in the cache
  float input[kRows][kColumns], decay[kRows][kColumns];
  for (Channels at{first, 0, {}, {}, {}}; at.first < last; at.first += at.count) {
    at.count = smaller(last - at.first, most);
    const int64_t channel = block * a.width + at.first;
    for (int64_t i = 0; i < at.count; ++i) {
      at.rate[i] = kSharpness * softplus(a.decay[channel + i]);
      at.input_bias[i] = a.input_gate_bias[channel + i];
      at.decay_bias[i] = a.decay_gate_bias[channel + i];
    }
    for_each_tile(0, rows, [&](int64_t tile, auto n) {
      multiply<n>(a, a.input_gate, block, at, tile, input);
      multiply<n>(a, a.decay_gate, block, at, tile, decay);
      for (int r = 0; r < n; ++r) {
        const int64_t row = tile + r, here = row * all + channel;
        const float* before = row % a.tokens == 0 ? a.initial + row / a.tokens * all + channel : a.h + here - all;
        step(at, a.positions[row], input[r], decay[r], a.u + here, before, a.h + here);
      }
    });
  }
}

}  // namespace

extern const RecurrenceKernels recurrence;
const RecurrenceKernels recurrence{rg_lru<float>, rg_lru<Bfloat16>};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
