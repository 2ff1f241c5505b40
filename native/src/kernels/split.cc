// Kernels for the fine part of a split weight, compiled once for each instruction set.
#include "kernels/split.h"

#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

Squares split_block(const uint8_t* quants, uint8_t* h, int64_t b, uint8_t* r) {
  int8_t left[32];
  Squares squares{0, 0};
  for (int i = 0; i < 32; ++i) {
    const int16_t q = int8_t(quants[i]), rounded = int16_t((q + 4) >> 3), high = rounded > 15 ? 15 : rounded;
    h[i] = uint8_t(high + 16);
    left[i] = int8_t(q - 8 * high);
  }
  r += fine_byte(b, 0);
  for (int i = 0; i < 32; i += 8, r += 16) {
    for (int k = i; k < i + 4; ++k) r[k - i] = uint8_t((left[k] + 4) | (left[k + 4] + 4) << 4);
  }
  for (int i = 0; i < 32; ++i) {
    squares.q += int8_t(quants[i]) * int8_t(quants[i]);
    squares.r += left[i] * left[i];
  }
  return squares;
}

// Multiplies 128 remainders by one part of their activations, into sixteen sums.
inline Floats group_dot(Bytes low, Bytes high, const FineGroup& x, int part) {
  return to_float(dot_each(dot_each(load(x.start[part]), low, x.q[part][0]), high, x.q[part][1]));
}

// Multiplies rows [first, last) of remainders by `Count` rows of activations, whose sums fit the registers.
template <int Count>
void fine_tile(const FineRows& rows, int64_t first, int64_t last, const FineGroup* x, float* y, int64_t stride) {
  constexpr int64_t kAhead = 16, kLine = 64;
  float scales[kMaxScales];
  for (int64_t row = first; row < last; ++row) {
    const uint8_t* const r = rows.first + row * rows.bytes;
    if (row + kAhead < rows.count) {
      for (int64_t i = 0; i < rows.bytes; i += kLine) __builtin_prefetch(r + kAhead * rows.bytes + i);
    }
    const auto* d = reinterpret_cast<const Float16*>(r);
    for (int64_t i = 0; i < 4 * rows.groups; i += kLanes) store(scales + i, load(d + i));
    Floats sum[Count];
    for (int c = 0; c < Count; ++c) sum[c] = zero();
    for (int64_t g = 0; g < rows.groups; ++g) {
      const Bytes both = load_bytes(r + rows.scale_bytes + g * 64);
      const Bytes low = shift_and<0>(both, 15), high = shift_and<-4>(both, 15);
      const Floats scale = repeat(scales + 4 * g);
      for (int c = 0; c < Count; ++c) {
        const FineGroup& group = x[c * rows.groups + g];
        const Floats coarse = group_dot(low, high, group, 0) * repeat(group.scales[0]);
        const Floats all = multiply_add(group_dot(low, high, group, 1), repeat(group.scales[1]), coarse);
        sum[c] = multiply_add(all, scale, sum[c]);
      }
    }
    for (int c = 0; c < Count; ++c) y[c * stride + row] += add_lanes(sum[c]);
  }
}

void fine(const FineRows& rows, const FineGroup* x, int64_t count, float* y, int64_t stride) {
  constexpr int64_t kStrip = 16;  // rows that stay in the first-level cache for all activations
  for (int64_t first = 0; first < rows.count; first += kStrip) {
    const int64_t last = smaller(first + kStrip, rows.count);
    for_each_tile(0, count, [&](int64_t c, auto n) {
      fine_tile<n>(rows, first, last, x + c * rows.groups, y + c * stride, stride);
    });
  }
}

void lane_maxima(const float* y, int64_t count, float* maxima) {
  Floats most = load(maxima);
  for (int64_t i = 0; i < count; i += kLanes) most = larger(load(y + i), most);  // ignores NaN
  store(maxima, most);
}

int64_t find_candidates(const Scores& scores, int64_t first, int64_t last, float threshold, int32_t* found) {
  const Floats enough = broadcast(threshold), length = broadcast(scores.length);
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
const SplitKernels split{split_block, fine, lane_maxima, find_candidates};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
