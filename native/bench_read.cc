// What the machine can read: sums a buffer with wide loads and a prefetch ahead. Compiled by bench.py.
#include <cstddef>
#include <cstdint>
#include <cstring>

typedef uint64_t Vector __attribute__((vector_size(64)));

extern "C" uint64_t read_bytes(const unsigned char* p, size_t size, size_t prefetch) {
  Vector sum[4] = {};
  for (size_t i = 0; i + 256 <= size; i += 256) {
    for (int j = 0; j < 4; ++j) {
      if (prefetch != 0) __builtin_prefetch(p + i + 64 * j + prefetch);
      Vector x;
      std::memcpy(&x, p + i + 64 * j, 64);
      sum[j] ^= x;
    }
  }
  const Vector all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  uint64_t result = 0;
  for (int i = 0; i < 8; ++i) result ^= all[i];
  return result;
}
