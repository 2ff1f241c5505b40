// Norms, gates and sums of rows of activations, compiled once for each instruction set.
#include <cfloat>

#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/activations.h"
#include "kernels/exponential.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

void normalize(const float* x, const float* gain, float eps, const float* residual, int64_t width, float* y) {
  float squares[kLanes] = {}, sum = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) squares[lane] += x[i + lane] * x[i + lane];
  }
  for (; i < width; ++i) sum += x[i] * x[i];
  for (float square : squares) sum += square;
  const float factor = 1.0f / __builtin_sqrtf(sum / float(width) + eps);
  if (residual == nullptr) {
    for (i = 0; i < width; ++i) y[i] = x[i] * factor * (1.0f + gain[i]);
  } else {
    for (i = 0; i < width; ++i) y[i] = residual[i] + x[i] * factor * (1.0f + gain[i]);
  }
}

void add(const float* x, const float* residual, int64_t width, float* y) {
  for (int64_t i = 0; i < width; ++i) y[i] = residual[i] + x[i];
}

void gate(const float* gate, const float* x, int64_t width, float* y) {
  for (int64_t i = 0; i < width; ++i) y[i] = gelu(gate[i]) * x[i];
}

void rounding_error(const float* x, int64_t width, float* y) {
  for (int64_t i = 0; i < width; i += kStripe) {
    const float scale = largest_magnitude(x + i) / 127.0f, inverse = scale < FLT_MIN ? 0.0f : 1.0f / scale;
    for (int64_t j = i; j < i + kStripe; ++j) y[j] = x[j] - scale * __builtin_rintf(x[j] * inverse);
  }
}

}  // namespace

extern const RowKernels row;
const RowKernels row{normalize, add, gate, rounding_error};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
