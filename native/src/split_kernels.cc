// The fine part of a split weight, compiled once for each instruction set as kernels.cc is.
#include "split.h"

#include "kernels.h"

#define GEMWRIGHT_STRING_(x) #x
#define GEMWRIGHT_STRING(x) GEMWRIGHT_STRING_(x)
#include GEMWRIGHT_SIMD_HEADER

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

Squares divide(const uint8_t* quants, uint8_t* h, uint8_t shift, uint8_t* r) {
  int8_t left[32];
  Squares squares{0, 0};
  for (int i = 0; i < 32; ++i) {
    const int16_t q = int8_t(quants[i]), rounded = int16_t((q + 4) >> 3), high = rounded > 15 ? 15 : rounded;
    h[i] = uint8_t(high + 16);
    left[i] = int8_t(q - 8 * high);
  }
  for (int i = 0; i < 32; ++i) r[i] = uint8_t(r[i] + uint8_t(left[i] + 4) * shift);
  for (int i = 0; i < 32; ++i) {
    squares.q += int8_t(quants[i]) * int8_t(quants[i]);
    squares.r += left[i] * left[i];
  }
  return squares;
}

// As many activations at a time as there are sums that fit the registers.
template <int Count>
void fine_tile(const uint8_t* row, const FineInput* x, float* y, int64_t stride) {
  const auto* d = reinterpret_cast<const Float16*>(row);
  const uint8_t* const nibbles = row + x->scale_bytes;
  float scales[Count][kMostScales];
  for (int64_t i = 0; i < x->scale_count; i += kLanes) {
    const Floats step = load(d + i);
    for (int c = 0; c < Count; ++c) store(scales[c] + i, step * load(x[c].scales + i));
  }
  Floats sum[Count];
  for (int c = 0; c < Count; ++c) sum[c] = zero();
  for (int64_t g = 0; g < x->groups; g += 2) {
    const Bytes both = load_bytes(nibbles + g / 2 * 64), low = shift_and<0>(both, 15), high = shift_and<-4>(both, 15);
    for (int c = 0; c < Count; ++c) {
      const float* scale = scales[c] + 2 * g;
      const int32_t* start = x[c].start + g * kLanes;
      const int8_t* q = x[c].q + g * 64;
      sum[c] = multiply_add(to_float(dot_each(load(start), low, q)), halves(scale[0], scale[1]), sum[c]);
      sum[c] = multiply_add(to_float(dot_each(load(start + kLanes), high, q + 64)), halves(scale[2], scale[3]), sum[c]);
    }
  }
  for (int c = 0; c < Count; ++c) y[c * stride] += add_lanes(sum[c]);
}

void fine(const uint8_t* row, const FineInput* x, int64_t count, float* y, int64_t stride) {
  for (; count >= 4; count -= 4, x += 4, y += 4 * stride) fine_tile<4>(row, x, y, stride);
  for (; count >= 1; count -= 1, x += 1, y += stride) fine_tile<1>(row, x, y, stride);
}

void tops(const float* y, int64_t count, float* tops) {
  Floats most = load(tops);
  for (int64_t i = 0; i < count; i += kLanes) most = larger(load(y + i), most);  // what is no number never counts
  store(tops, most);
}

int64_t find(const Scores& scores, int64_t first, int64_t last, float least, int32_t* found) {
  const Floats enough = broadcast(least), length = broadcast(scores.length);
  int64_t count = 0;
  for (; first < last; first += kLanes) {
    Floats most = zero();
    if (last - first >= kLanes) {
      most = load(scores.y + first);
    } else {
      float some[kLanes] = {};
      std::memcpy(some, scores.y + first, (last - first) * sizeof(float));
      most = load(some);
    }
    if (scores.errors != nullptr) most = multiply_add(load(scores.errors + first), length, most);
    for (uint32_t lanes = at_least(most, enough); lanes != 0; lanes &= lanes - 1) {
      const int64_t row = first + __builtin_ctz(lanes);
      if (row < last) found[count++] = int32_t(row);
    }
  }
  return count;
}

}  // namespace

extern const SplitKernels split;
const SplitKernels split{divide, fine, tops, find};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
