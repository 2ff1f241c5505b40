// The table of kernels that each instruction set provides, and the choice of one.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/format.h"
#include "kernels/rg_lru.h"
#include "kernels/split.h"

namespace gemwright {

// Kernels process rows from a multiple of this up to the next multiple or the last row; each set's row tile divides it.
constexpr int kRowGroup = 8;

// y[rows, out] = x[rows, in] . w[out, in]^T, all row-major and contiguous.
struct MatmulArgs {
  const uint8_t* panels;
  int64_t panel_bytes;
  int64_t in, out;
  const float* x;
  void* tiles;  // x as the kernels read it, written by `prepare`
  float* y;
  bool paired;  // two rows of x are parts of one: their products are added, y[rows / 2, out]; ignored by `exact`
};

// y[n, width] = w[ids], NaN for an id outside the table.
struct RowsArgs {
  const uint8_t* panels;
  int64_t panel_bytes, n_panels;
  const int32_t* ids;
  int64_t width;
  float* y;
};

// Operations on one row of activations; `y` may alias an input.
struct RowKernels {
  // y = x / rms(x) * (1 + gain), plus `residual` unless it is null.
  void (*normalize)(const float* x, const float* gain, float eps, const float* residual, int64_t width, float* y);
  // y = x + residual
  void (*add)(const float* x, const float* residual, int64_t width, float* y);
  // y = gelu(gate) * x
  void (*gate)(const float* gate, const float* x, int64_t width, float* y);
  // y = x - x rounded to 8 bits; `width` is a multiple of kStripe.
  void (*rounding_error)(const float* x, int64_t width, float* y);
};

// Products with activations and weights rounded to bfloat16; null if the instruction set has none.
struct Bfloat16Kernels {
  // Converts rows [row, row + rows) of x into tiles, which have room for a multiple of kBfloat16Rows.
  void (*prepare)(const MatmulArgs&, int64_t row, int64_t rows);
  void (*matmul[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
};
constexpr int64_t kBfloat16Rows = 32;  // the first row of a product is a multiple of this

// Products with activations rounded to 16 bits, one `Activations16` per stripe and else as `Kernels::matmul`; null if the
// instruction set multiplies two 8-bit parts as fast. Sums do not depend on the number of rows.
struct Int16Kernels {
  void (*prepare[kEncodings])(const MatmulArgs&, int64_t row, int64_t rows);
  void (*matmul[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
};
constexpr int64_t kInt16Rows = 128;  // most rows of a product

struct Kernels {
  const char* name;
  bool (*supported)();  // asks the processor
  // Products with 8-bit activations, for panels [first, last); null for plain floats. `prepare` quantizes rows
  // [row, row + rows) of x into tiles, one `Activations` per stripe. Within a tile the rows' entries for a stripe are
  // adjacent, so the product finds them at fixed offsets from one pointer.
  void (*prepare[kEncodings])(const MatmulArgs&, int64_t row, int64_t rows);
  void (*matmul[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
  // Float32 products, with float32 tiles.
  void (*prepare_exact)(const MatmulArgs&, int64_t row, int64_t rows);
  void (*exact[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
  // Looks up ids [first, last).
  void (*rows[kEncodings])(const RowsArgs&, int64_t first, int64_t last);
  const Int16Kernels& int16;
  const Bfloat16Kernels& bfloat16;
  const AttentionKernels& attention;
  const RecurrenceKernels& recurrence;
  const RowKernels& row;
  const SplitKernels& split;
  const CrossEntropyKernels& cross_entropy;
};

// Returns the kernels in use: those of the best supported instruction set, unless `select_isa` chose another.
const Kernels& kernels();

// Chooses an instruction set by name; returns false if this build or processor lacks it.
bool select_isa(const char* name);

// Returns the name of the `index`-th supported instruction set, best first; null past the last.
const char* isa_name(int index);

}  // namespace gemwright
