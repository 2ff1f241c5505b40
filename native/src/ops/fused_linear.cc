#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "ops/ops.h"
#include "ops/repack.h"
#include "ops/split.h"

namespace gemwright {
namespace {

// Work per task: 1 to 2 µs. That is long compared with claiming a task, and short for a thread that waits for the last.
constexpr int64_t kTaskBytes = 1 << 14;
// Work that pays for waking one more thread.
constexpr int64_t kBytesPerThread = 1 << 16;

// Bytes of activations in a chunk, which stays in the second-level cache while many panels pass over it.
constexpr int64_t kChunkBytes = 1 << 18;

// The arithmetic for block formats. Plain floats are always multiplied in float32.
enum class Arithmetic { kFloat32, kInt8, kInt16, kBfloat16 };

// With more rows than this, products are computed in bfloat16 if the processor multiplies bfloat16 tiles. bfloat16 rounds
// activations more finely than 8 bits, which share the scale of the largest of 32, so `activation_bits` is then ignored.
// At 32 rows decoding the weights costs what the tiles save. The limit also covers eight draft tokens of eight
// sequences, which must be verified with the arithmetic they are decoded with.
constexpr int64_t kMaxInt8Rows = 64;
constexpr int64_t kBfloat16Chunk = 1024;  // rows whose tiles stay in the second-level cache

// A buffer that each thread keeps per `Purpose`, because a new allocation of this size is mapped and zeroed at each call.
template <int Purpose>
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    thread_local std::vector<Line> buffer;
    const size_t lines = line_count(bytes) + kParts;
    if (buffer.size() < lines) buffer.resize(lines);
    next_ = buffer.data();
  }
  void* allocate(int64_t bytes) {
    void* const memory = next_;
    next_ += line_count(bytes);
    return memory;
  }
  static constexpr int kParts = 64;  // most allocations, each rounded up to a line

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  static int64_t line_count(int64_t bytes) { return (bytes + int64_t{sizeof(Line)} - 1) / int64_t{sizeof(Line)}; }

  Line* next_;
};

using Prepare = void (*)(const MatmulArgs&, int64_t row, int64_t rows);
using Multiply = void (*)(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);

struct Product {
  Prepare prepare;  // null if an earlier product has the same tiles
  Multiply multiply;
  int64_t tile_bytes, packed_size, panels;
  int64_t unit_panels, tasks, chunk_rows;  // panels per unit of work, most tasks per thread, rows per chunk
  MatmulArgs args;
};

int64_t row_groups(int64_t rows) { return (rows + kRowGroup - 1) / kRowGroup; }

// Divides rows among threads in whole groups: body(first row, count).
template <class Body>
void for_rows(Pool& pool, int64_t rows, int64_t row_bytes, const Body& body) {
  const int64_t groups = row_groups(rows),
                tasks = task_count(rows * row_bytes, kTaskBytes, std::min(groups, 4 * pool.threads()));
  parallel_for(pool, tasks, [&](int64_t i) {
    const int64_t first = groups * i / tasks * kRowGroup, last = std::min(groups * (i + 1) / tasks * kRowGroup, rows);
    body(first, last - first);
  });
}

// Chooses the kernels and the work division of each product. The sizes have been checked.
std::vector<Product> plan(Arithmetic arithmetic, int64_t rows, int64_t in, const std::vector<Weight>& weights) {
  const Kernels& table = kernels();
  std::vector<Product> products;
  for (const Weight& weight : weights) {
    const Encoding encoding = *find_encoding(weight.encoding);
    Prepare prepare = table.prepare_exact;
    Multiply multiply = table.exact[encoding];
    int64_t row_bytes = in * int64_t{sizeof(float)}, most_rows = std::numeric_limits<int64_t>::max();
    if (arithmetic != Arithmetic::kFloat32 && table.matmul[encoding] != nullptr) {
      prepare = table.prepare[encoding], multiply = table.matmul[encoding];
      row_bytes = in / kStripe * int64_t{sizeof(Activations)};
      if (arithmetic == Arithmetic::kInt16) {
        prepare = table.int16.prepare[encoding], multiply = table.int16.matmul[encoding];
        row_bytes = in / kStripe * int64_t{sizeof(Activations16)}, most_rows = kInt16Rows;
      }
    }
    const int64_t chunk_rows =
        std::max<int64_t>(kChunkBytes / std::max<int64_t>(row_bytes * kRowGroup, 1), 1) * kRowGroup;
    products.push_back(
        {prepare,
         multiply,
         rows * row_bytes,
         weight.packed_size,
         (weight.out + kLanes - 1) / kLanes,
         1,
         256,
         std::min(chunk_rows, most_rows),
         {weight.packed, *panel_bytes(encoding, in), in, weight.out, nullptr, nullptr, weight.y, false}});
    if (arithmetic == Arithmetic::kBfloat16 && table.bfloat16.matmul[encoding] != nullptr) {
      Product& product = products.back();
      product.prepare = table.bfloat16.prepare, product.multiply = table.bfloat16.matmul[encoding];
      product.tile_bytes = (rows + kBfloat16Rows - 1) / kBfloat16Rows * kBfloat16Rows * in * int64_t{sizeof(Bfloat16)};
      product.unit_panels = 2, product.tasks = 8, product.chunk_rows = kBfloat16Chunk;
    }
  }
  return products;
}

// Writes row `row` of x to y, gated and normalized as `fusion` says.
void apply_prologue(const Fusion& fusion, const float* x, int64_t row, int64_t in, float* y) {
  const RowKernels& kernel = kernels().row;
  const float* from = x + row * in;
  if (fusion.gate != nullptr) kernel.gate(fusion.gate + row * in, from, in, y), from = y;
  if (fusion.gain != nullptr) kernel.normalize(from, fusion.gain, fusion.eps, nullptr, in, y), from = y;
  if (from != y) std::copy_n(from, in, y);
}

// Writes the tiles of all products.
void prepare(Pool& pool, const float* x, int64_t rows, int64_t in, const Fusion& fusion,
             std::vector<Product>& products) {
  const bool changed = fusion.gain != nullptr || fusion.gate != nullptr;
  int64_t bytes = changed ? rows * in * int64_t{sizeof(float)} : 0;
  for (const Product& product : products) bytes += product.tile_bytes;
  Scratch<0> scratch(bytes);
  float* const input = changed ? static_cast<float*>(scratch.allocate(rows * in * sizeof(float))) : nullptr;
  for (size_t i = 0; i < products.size(); ++i) {
    MatmulArgs& args = products[i].args;
    args.x = changed ? input : x;
    for (size_t j = 0; j < i && args.tiles == nullptr; ++j) {
      if (products[j].prepare == products[i].prepare) args.tiles = products[j].args.tiles;
    }
    if (args.tiles != nullptr) {
      products[i].prepare = nullptr;
    } else {
      args.tiles = scratch.allocate(products[i].tile_bytes);
    }
  }
  for_rows(pool, rows, in * sizeof(float), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count && changed; ++row)
      apply_prologue(fusion, x, row, in, input + row * in);
    for (const Product& product : products) {
      if (product.prepare != nullptr) product.prepare(product.args, first, count);
    }
  });
}

// Divides the panels of all products among threads.
void multiply(Pool& pool, int64_t rows, const std::vector<Product>& products) {
  const int64_t groups = row_groups(rows);
  std::vector<int64_t> ends;
  int64_t bytes = 0;
  for (const Product& product : products) {
    bytes += product.packed_size * groups;
    const int64_t units = (product.panels + product.unit_panels - 1) / product.unit_panels;
    const int64_t count =
        task_count(product.packed_size * groups, kTaskBytes, std::min(units, product.tasks * pool.threads()));
    ends.push_back((ends.empty() ? 0 : ends.back()) + count);
  }
  parallel_for(pool, ends.back(), bytes / kBytesPerThread, [&](int64_t part) {
    const size_t which = std::upper_bound(ends.begin(), ends.end(), part) - ends.begin();
    const Product& product = products[which];
    const int64_t begin = which == 0 ? 0 : ends[which - 1], count = ends[which] - begin, i = part - begin;
    const int64_t unit_panels = product.unit_panels, units = (product.panels + unit_panels - 1) / unit_panels;
    const int64_t first = units * i / count * unit_panels;
    const int64_t last = std::min(units * (i + 1) / count * unit_panels, product.panels);
    for (int64_t row = 0; row < rows; row += product.chunk_rows) {
      product.multiply(product.args, first, last, row, std::min(product.chunk_rows, rows - row));
    }
  });
}

// Multiplies with 16-bit activations as two parts: a row of x becomes two rows of 8-bit activations, itself and its
// rounding error, whose products are added.
void multiply_in_parts(Pool& pool, const float* x, int64_t rows, int64_t in, const Fusion& fusion,
                       const std::vector<Weight>& weights) {
  const int64_t bytes = 2 * rows * in * sizeof(float);
  Scratch<1> scratch(bytes);
  auto* const input = static_cast<float*>(scratch.allocate(bytes));
  for_rows(pool, rows, in * sizeof(float), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      float* const both = input + 2 * row * in;
      apply_prologue(fusion, x, row, in, both);
      kernels().row.rounding_error(both, in, both + in);
    }
  });
  std::vector<Product> planned = plan(Arithmetic::kInt8, 2 * rows, in, weights);
  for (Product& product : planned) product.args.paired = true;
  prepare(pool, input, 2 * rows, in, {}, planned);
  multiply(pool, 2 * rows, planned);
}

// Normalizes the product and adds the residual, as `fusion` says.
void apply_epilogue(Pool& pool, int64_t rows, const Fusion& fusion, const Weight& weight) {
  if (fusion.residual == nullptr && fusion.post_gain == nullptr) return;
  const RowKernels& kernel = kernels().row;
  for_rows(pool, rows, weight.out * sizeof(float), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      float* y = weight.y + row * weight.out;
      const float* residual = fusion.residual == nullptr ? nullptr : fusion.residual + row * weight.out;
      if (fusion.post_gain != nullptr) {
        kernel.normalize(y, fusion.post_gain, fusion.eps, residual, weight.out, y);
      } else {
        kernel.add(y, residual, weight.out, y);
      }
    }
  });
}

}  // namespace

std::string fused_linear(Pool& pool, bool exact, const float* x, int64_t rows, int64_t in, const Fusion& fusion,
                         const std::vector<Weight>& weights) {
  if (weights.size() == 1 && weights[0].encoding == kSplitName) {
    const bool plain = !exact && !fusion.gain && !fusion.gate && !fusion.post_gain && !fusion.residual;
    return plain ? split_product(pool, x, rows, in, weights[0])
                 : "a split weight is always multiplied with 16-bit activations; use matmul without `exact`.";
  }
  if (weights.empty() || weights.size() >= Scratch<0>::kParts)
    return "fused_linear needs 1 to " + std::to_string(Scratch<0>::kParts - 1) + " weights.";
  for (const Weight& weight : weights) {
    const auto encoding = find_encoding(weight.encoding);
    if (!encoding) return "encoding " + std::string(weight.encoding) + " has no kernels.";
    if (rows < 0 || packed_bytes(*encoding, weight.out, in) != weight.packed_size) {
      return std::to_string(weight.packed_size) + " packed bytes are not a " + std::string(weight.encoding) +
             " weight of shape [" + std::to_string(weight.out) + ", " + std::to_string(in) + "].";
    }
  }
  if (fusion.activation_bits != 8 && fusion.activation_bits != 16) return "activation_bits must be 8 or 16.";
  if (rows == 0) return {};
  const bool blocks = std::all_of(weights.begin(), weights.end(), [](const Weight& weight) {
    return kernels().matmul[*find_encoding(weight.encoding)] != nullptr;
  });
  const bool many = rows > kMaxInt8Rows && kernels().bfloat16.prepare != nullptr;
  const bool int16 = fusion.activation_bits == 16 && blocks && !exact && !many;
  const bool parts = int16 && kernels().int16.matmul[kQ8_0] == nullptr;
  const Arithmetic arithmetic = exact   ? Arithmetic::kFloat32
                                : many  ? Arithmetic::kBfloat16
                                : int16 ? Arithmetic::kInt16
                                        : Arithmetic::kInt8;
  if (parts) {
    multiply_in_parts(pool, x, rows, in, fusion, weights);
  } else {
    std::vector<Product> planned = plan(arithmetic, rows, in, weights);
    prepare(pool, x, rows, in, fusion, planned);
    multiply(pool, rows, planned);
  }
  for (const Weight& weight : weights) apply_epilogue(pool, rows, fusion, weight);
  return {};
}

}  // namespace gemwright
