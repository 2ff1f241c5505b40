// Products of many rows in bfloat16 with AMX, compiled once for each instruction set; empty for the others.
#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/decode.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

extern const Bfloat16Kernels bfloat16;

#ifndef __AMX_BF16__
const Bfloat16Kernels bfloat16{};
#else

// An AMX register holds 16 rows of 64 bytes. One instruction adds the product of x [16 rows, 32 values] and weights [16
// pairs of values, 16 outputs, 2] to sums [16 rows, 16 outputs]. The tiles in memory have the layout of the registers.
namespace {

constexpr int64_t kSide = 16;             // rows of x, outputs, or pairs of values
constexpr int64_t kStep = 2 * kSide;      // values of a row in a tile
constexpr int64_t kTile = kSide * kStep;  // numbers in a tile
constexpr int64_t kDepth = 1024;          // values of two decoded panels, which take 64 KB of cache

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rounds two vectors of sixteen floats to nearest even, into one of bfloat16.
__m512i narrow(const float* first, const float* second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first)));
}

// Rows past the last of x stay uninitialized; they are never written to the result.
void prepare(const MatmulArgs& args, int64_t row, int64_t rows) {
  auto* const tiles = static_cast<Bfloat16*>(args.tiles);
  for (int64_t r = row; r < row + rows; ++r) {
    const float* x = args.x + r * args.in;
    Bfloat16* to = tiles + r / kSide * kSide * args.in + r % kSide * kStep;
    for (int64_t i = 0; i < args.in; i += kStep, to += kTile) _mm512_storeu_si512(to, narrow(x + i, x + i + kSide));
  }
}

// Decodes values [first, first + count) of a panel into tiles, `stride` numbers apart.
template <class Format>
void decode_tiles(const uint8_t* panel, int64_t first, int64_t count, Bfloat16* tiles, int64_t stride) {
  alignas(64) uint16_t pairs[2 * kSide];  // interleaves the lanes of two vectors
  for (int i = 0; i < kSide; ++i) pairs[2 * i] = uint16_t(i), pairs[2 * i + 1] = uint16_t(kSide + i);
  const __m512i order = _mm512_load_si512(pairs);
  Tile values;
  for (int64_t i = 0; i < count; i += kTileValues) {
    const int64_t part = smaller(kTileValues, count - i);
    decode<Format>(panel, first + i, part, values);
    for (int64_t j = 0; j < part; j += 2) {
      Bfloat16* to = tiles + (i + j) / kStep * stride + (i + j) % kStep * kSide;
      _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, narrow(values[j], values[j + 1])));
    }
  }
}

// The register configuration: sums of two by two tiles in 0 to 3, tiles of x in 4 and 5, of weights in 6 and 7.
struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Configures for `rows` rows of x and `lanes` outputs, 32 at most each, so that no tile exceeds the result.
void configure(int64_t rows, int64_t lanes) {
  Shapes shapes;
  for (int i = 0; i < 2; ++i) {
    const auto r = uint8_t(smaller(rows - smaller(rows, i * kSide), kSide));
    shapes.rows[2 * i] = shapes.rows[2 * i + 1] = shapes.rows[4 + i] = r;
    shapes.bytes[4 + i] = kStep * sizeof(Bfloat16);
    const auto bytes = uint16_t(4 * smaller(lanes - smaller(lanes, i * kSide), kSide));
    shapes.bytes[i] = shapes.bytes[2 + i] = shapes.bytes[6 + i] = bytes;
    shapes.rows[6 + i] = kSide;
  }
  for (int i = 0; i < 8; ++i) {  // an unused register must have both sizes zero
    if (shapes.rows[i] == 0 || shapes.bytes[i] == 0) shapes.rows[i] = 0, shapes.bytes[i] = 0;
  }
  __asm__ volatile("" ::: "memory");  // the intrinsic does not declare that it reads memory
  _tile_loadconfig(&shapes);
}

// Computes `Rows` by `Panels` tiles of sums at y. Adds to y unless this is the first part.
template <int Rows, int Panels>
void multiply_tiles(const Bfloat16* x, int64_t next_x, const Bfloat16* w, int64_t steps, float* y, int64_t out,
                    bool first) {
  const int64_t stride = out * sizeof(float), line = kStep * sizeof(Bfloat16);
  float* const below = y + kSide * out;
  _tile_zero(0);
  if constexpr (Panels == 2) _tile_zero(1);
  if constexpr (Rows == 2) _tile_zero(2);
  if constexpr (Rows == 2 && Panels == 2) _tile_zero(3);
  if (!first) {
    _tile_loadd(0, y, stride);
    if constexpr (Panels == 2) _tile_loadd(1, y + kSide, stride);
    if constexpr (Rows == 2) _tile_loadd(2, below, stride);
    if constexpr (Rows == 2 && Panels == 2) _tile_loadd(3, below + kSide, stride);
  }
  for (int64_t step = 0; step < steps; ++step, x += kTile, w += 2 * kTile) {
    _tile_loadd(4, x, line);
    _tile_loadd(6, w, line);
    if constexpr (Rows == 2) _tile_loadd(5, x + next_x, line);
    if constexpr (Panels == 2) _tile_loadd(7, w + kTile, line);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Panels == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Rows == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (Rows == 2 && Panels == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, y, stride);
  if constexpr (Panels == 2) _tile_stored(1, y + kSide, stride);
  if constexpr (Rows == 2) _tile_stored(2, below, stride);
  if constexpr (Rows == 2 && Panels == 2) _tile_stored(3, below + kSide, stride);
}

template <int Panels, class Format>
void multiply_panels(const MatmulArgs& args, int64_t panel, int64_t row, int64_t rows, int64_t first, int64_t count,
                     Bfloat16* w) {
  const uint8_t* from = args.panels + panel * args.panel_bytes;
  for (int i = 0; i < Panels; ++i) {
    decode_tiles<Format>(from + i * args.panel_bytes, first, count, w + i * kTile, 2 * kTile);
  }
  const int64_t column = panel * kSide, lanes = smaller(Panels * kSide, args.out - column);
  const int64_t steps = count / kStep, next_x = kSide * args.in, end = row + rows;
  int64_t configured = 0;
  for (int64_t r = row, some; r < end; r += some) {
    some = smaller(2 * kSide, end - r);
    if (some != configured) configure(configured = some, lanes);
    const Bfloat16* x = static_cast<const Bfloat16*>(args.tiles) + r * args.in + first * kSide;
    float* const y = args.y + r * args.out + column;
    if (some > kSide) {
      multiply_tiles<2, Panels>(x, next_x, w, steps, y, args.out, first == 0);
    } else {
      multiply_tiles<1, Panels>(x, next_x, w, steps, y, args.out, first == 0);
    }
  }
}

template <class Format>
void matmul(const MatmulArgs& args, int64_t first, int64_t last, int64_t row, int64_t rows) {
  alignas(64) Bfloat16 w[2 * kDepth * kSide];
  int64_t i = 0;
  do {  // at least once, so that y is written even if `in` is zero
    const int64_t count = smaller(kDepth, args.in - i);
    for (int64_t panel = first; panel < last; panel += 2) {
      if (last - panel > 1) {
        multiply_panels<2, Format>(args, panel, row, rows, i, count, w);
      } else {
        multiply_panels<1, Format>(args, panel, row, rows, i, count, w);
      }
    }
    i += count;
  } while (i < args.in);
  _tile_release();
}

template <class Format>
constexpr void add(Bfloat16Kernels& table, Encoding encoding) {
  if constexpr (!Format::kPlain) table.matmul[encoding] = matmul<Format>;
}

constexpr Bfloat16Kernels make_table() {
  Bfloat16Kernels table{prepare, {}};
#define GEMWRIGHT_ADD(format) add<format>(table, k##format);
  GEMWRIGHT_FORMATS(GEMWRIGHT_ADD)
#undef GEMWRIGHT_ADD
  return table;
}

}  // namespace

const Bfloat16Kernels bfloat16 = make_table();
#endif

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
