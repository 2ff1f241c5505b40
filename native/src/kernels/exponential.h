// e^x and functions based on it, for all kernels. Plain code, so that the compiler vectorizes loops over it.
#pragma once

#include <cstdint>
#include <cstring>

namespace gemwright {
namespace GEMWRIGHT_ISA {

// Returns e^x for x <= 0 within two units in the last place; underflows to 0.
inline float exponential(float x) {
  const float invalid = x - x;  // NaN if x is NaN or infinite
  x = x > -87.0f ? x : -87.0f;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const int32_t power = (int32_t(n) + 127) << 23;
  float two_to_n;
  std::memcpy(&two_to_n, &power, 4);
  return y * two_to_n + invalid;
}

// Returns e^x - 1 for x <= 0, equally accurate near zero; -1 for very negative x.
inline float exponential_less_one(float x) {
  const float invalid = x - x;
  x = x > -87.0f ? x : -87.0f;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.0f / 5040;
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r * r + r;
  const int32_t power = (int32_t(n) + 127) << 23;
  float two_to_n;
  std::memcpy(&two_to_n, &power, 4);
  return y * two_to_n + (two_to_n - 1.0f) + invalid;
}

// cap * tanh(x / cap)
inline float capped(float x, float cap) {
  const float magnitude = x < 0 ? -x : x;
  const float t = exponential(-2.0f * magnitude / cap);
  const float y = cap * (1.0f - t) / (1.0f + t);
  return x < 0 ? -y : y;
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), with the tanh written as a logistic function.
inline float gelu(float x) {
  const float u = 1.59576912f * (x + 0.044715f * x * x * x);
  const float t = exponential(u < 0 ? u : -u);
  return x * (u < 0 ? t : 1.0f) / (1.0f + t);
}

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
