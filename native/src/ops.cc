#include "ops.h"

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "packing.h"

namespace gemwright {
namespace {

// One part of a loop takes a microsecond or two: long beside taking it, short where another thread waits for the last.
constexpr int64_t kPartBytes = 1 << 14;
// What a thread more is worth waking for, if it has gone.
constexpr int64_t kThreadBytes = 1 << 16;

// A chunk of activation rows that stays in the second-level cache while many panels pass over it.
constexpr int64_t kChunkBytes = 1 << 18;

// What a block format is multiplied in; plain floats are always exact.
enum class Numbers { kExact, kIntegers, kBfloat16 };

// More rows are multiplied in bfloat16, where the processor multiplies whole tiles of that. The rounding of activations
// is finer than to 8 bits, which share the scale of the largest of 32, so none are taken precisely. With 32 rows
// decoding the weights costs what it saves, and eight tokens of eight texts must be verified as they are decoded.
constexpr int64_t kFewRows = 64;
constexpr int64_t kBfloat16Chunk = 1024;  // rows whose tiles stay in the second-level cache

int64_t parts(int64_t work, int64_t most) {
  return std::clamp<int64_t>(work / kPartBytes, 1, std::max<int64_t>(most, 1));
}

// Memory that a thread keeps for a purpose: a fresh allocation of this size would be mapped and zeroed at every call.
template <int Purpose>
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    thread_local std::vector<Line> kept;
    const size_t lines = (bytes + sizeof(Line) - 1) / sizeof(Line) + kParts;
    if (kept.size() < lines) kept.resize(lines);
    next_ = kept.data();
  }
  void* take(int64_t bytes) {
    void* const taken = next_;
    next_ += (bytes + sizeof(Line) - 1) / sizeof(Line);
    return taken;
  }
  static constexpr int kParts = 64;  // that may be taken, each rounded up to a line

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  Line* next_;
};

using Prepare = void (*)(const MatmulArgs&, int64_t row, int64_t rows);
using Multiply = void (*)(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);

struct Product {
  Prepare prepare;  // null where an earlier product has the same tiles
  Multiply multiply;
  int64_t tile_bytes, packed_size, panels;
  int64_t together, shares, chunk;  // panels taken at a time, parts for each thread at most, rows taken at a time
  MatmulArgs args;
};

int64_t row_groups(int64_t rows) { return (rows + kRowGroup - 1) / kRowGroup; }

// Shares out rows in whole groups: body(first row, count).
template <class Body>
void for_rows(Pool& pool, int64_t rows, int64_t row_bytes, const Body& body) {
  const int64_t groups = row_groups(rows), shares = parts(rows * row_bytes, std::min(groups, 4 * pool.threads()));
  parallel_for(pool, shares, [&](int64_t i) {
    const int64_t first = groups * i / shares * kRowGroup, last = std::min(groups * (i + 1) / shares * kRowGroup, rows);
    body(first, last - first);
  });
}

// The sizes are right: finds the kernels, and where the tiles of each product lie.
std::vector<Product> plan(Numbers numbers, int64_t rows, int64_t in, const std::vector<Weight>& weights) {
  const Kernels& table = kernels();
  std::vector<Product> products;
  for (const Weight& weight : weights) {
    const Encoding encoding = *find_encoding(weight.encoding);
    const bool integers = numbers != Numbers::kExact && table.matmul[encoding] != nullptr;
    const int64_t row_bytes = integers ? in / kStripe * int64_t{sizeof(Activations)} : in * int64_t{sizeof(float)};
    const int64_t chunk = std::max<int64_t>(kChunkBytes / std::max<int64_t>(row_bytes * kRowGroup, 1), 1) * kRowGroup;
    products.push_back({integers ? table.prepare[encoding] : table.prepare_exact,
                        integers ? table.matmul[encoding] : table.exact[encoding], rows * row_bytes,
                        weight.packed_size, (weight.out + kLanes - 1) / kLanes, 1, 256, chunk,
                        {weight.packed, *panel_bytes(encoding, in), in, weight.out, nullptr, nullptr, weight.y,
                         false}});
    if (numbers == Numbers::kBfloat16 && table.bfloat16.matmul[encoding] != nullptr) {
      Product& product = products.back();
      product.prepare = table.bfloat16.prepare, product.multiply = table.bfloat16.matmul[encoding];
      product.tile_bytes = (rows + kBfloat16Rows - 1) / kBfloat16Rows * kBfloat16Rows * in * int64_t{sizeof(Bfloat16)};
      product.together = 2, product.shares = 8, product.chunk = kBfloat16Chunk;
    }
  }
  return products;
}

// A row of x, gated or normalised where that is asked for.
void enter(const Around& around, const float* x, int64_t row, int64_t in, float* y) {
  const RowKernels& kernel = kernels().row;
  const float* from = x + row * in;
  if (around.gate != nullptr) kernel.gate(around.gate + row * in, from, in, y), from = y;
  if (around.gain != nullptr) kernel.normalise(from, around.gain, around.eps, nullptr, in, y), from = y;
  if (from != y) std::copy_n(from, in, y);
}

// Makes the tiles.
void prepare(Pool& pool, const float* x, int64_t rows, int64_t in, const Around& around,
             std::vector<Product>& products) {
  const bool changed = around.gain != nullptr || around.gate != nullptr;
  int64_t bytes = changed ? rows * in * int64_t{sizeof(float)} : 0;
  for (const Product& product : products) bytes += product.tile_bytes;
  Scratch<0> scratch(bytes);
  float* const input = changed ? static_cast<float*>(scratch.take(rows * in * sizeof(float))) : nullptr;
  for (size_t i = 0; i < products.size(); ++i) {
    MatmulArgs& args = products[i].args;
    args.x = changed ? input : x;
    for (size_t j = 0; j < i && args.tiles == nullptr; ++j) {
      if (products[j].prepare == products[i].prepare) args.tiles = products[j].args.tiles;
    }
    if (args.tiles != nullptr) {
      products[i].prepare = nullptr;
    } else {
      args.tiles = scratch.take(products[i].tile_bytes);
    }
  }
  for_rows(pool, rows, in * sizeof(float), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count && changed; ++row) enter(around, x, row, in, input + row * in);
    for (const Product& product : products) {
      if (product.prepare != nullptr) product.prepare(product.args, first, count);
    }
  });
}

// Shares out the panels of all products together.
void multiply(Pool& pool, int64_t rows, const std::vector<Product>& products) {
  const int64_t groups = row_groups(rows);
  std::vector<int64_t> ends;
  int64_t bytes = 0;
  for (const Product& product : products) {
    bytes += product.packed_size * groups;
    const int64_t units = (product.panels + product.together - 1) / product.together;
    const int64_t count = parts(product.packed_size * groups, std::min(units, product.shares * pool.threads()));
    ends.push_back((ends.empty() ? 0 : ends.back()) + count);
  }
  parallel_for(pool, ends.back(), bytes / kThreadBytes, [&](int64_t part) {
    const size_t which = std::upper_bound(ends.begin(), ends.end(), part) - ends.begin();
    const Product& product = products[which];
    const int64_t begin = which == 0 ? 0 : ends[which - 1], count = ends[which] - begin, i = part - begin;
    const int64_t together = product.together, units = (product.panels + together - 1) / together;
    const int64_t first = units * i / count * together;
    const int64_t last = std::min(units * (i + 1) / count * together, product.panels);
    for (int64_t row = 0; row < rows; row += product.chunk) {
      product.multiply(product.args, first, last, row, std::min(product.chunk, rows - row));
    }
  });
}

// Each row of activations is two: itself, and what rounding that to 8 bits leaves out. Their products are added.
void multiply_precisely(Pool& pool, const float* x, int64_t rows, int64_t in, const Around& around,
                        const std::vector<Weight>& weights) {
  const int64_t bytes = 2 * rows * in * sizeof(float);
  Scratch<1> scratch(bytes);
  auto* const input = static_cast<float*>(scratch.take(bytes));
  for_rows(pool, rows, in * sizeof(float), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      float* const both = input + 2 * row * in;
      enter(around, x, row, in, both);
      kernels().row.rest(both, in, both + in);
    }
  });
  std::vector<Product> planned = plan(Numbers::kIntegers, 2 * rows, in, weights);
  for (Product& product : planned) product.args.paired = true;
  prepare(pool, input, 2 * rows, in, {}, planned);
  multiply(pool, 2 * rows, planned);
}

// Normalises the result and adds it to the residual where that is asked for.
void leave(Pool& pool, int64_t rows, const Around& around, const Weight& weight) {
  if (around.residual == nullptr && around.post_gain == nullptr) return;
  const RowKernels& kernel = kernels().row;
  for_rows(pool, rows, weight.out * sizeof(float), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      float* y = weight.y + row * weight.out;
      const float* residual = around.residual == nullptr ? nullptr : around.residual + row * weight.out;
      if (around.post_gain != nullptr) {
        kernel.normalise(y, around.post_gain, around.eps, residual, weight.out, y);
      } else {
        kernel.add(y, residual, weight.out, y);
      }
    }
  });
}

}  // namespace

std::string products(Pool& pool, bool exact, const float* x, int64_t rows, int64_t in, const Around& around,
                     const std::vector<Weight>& weights) {
  if (weights.size() == 1 && weights[0].encoding == kSplitName) {
    const bool alone = !exact && !around.gain && !around.gate && !around.post_gain && !around.residual;
    return alone ? split_product(pool, x, rows, in, weights[0]) : "a split weight is multiplied alone, precisely.";
  }
  if (weights.empty() || weights.size() >= Scratch<0>::kParts) return "a product has too few or too many weights.";
  for (const Weight& weight : weights) {
    const auto encoding = find_encoding(weight.encoding);
    if (!encoding) return "a product has no encoding " + std::string(weight.encoding) + ".";
    if (rows < 0 || packed_bytes(*encoding, weight.out, in) != weight.packed_size) {
      return "a product was given " + std::to_string(weight.packed_size) + " packed bytes, which are no " +
             std::string(weight.encoding) + " weight of shape [" + std::to_string(weight.out) + ", " +
             std::to_string(in) + "].";
    }
  }
  if (rows == 0) return {};
  const bool blocks = std::all_of(weights.begin(), weights.end(), [](const Weight& weight) {
    return kernels().matmul[*find_encoding(weight.encoding)] != nullptr;
  });
  const bool many = rows > kFewRows && kernels().bfloat16.prepare != nullptr;
  const Numbers numbers = exact ? Numbers::kExact : many ? Numbers::kBfloat16 : Numbers::kIntegers;
  if (around.precise && blocks && numbers == Numbers::kIntegers) {
    multiply_precisely(pool, x, rows, in, around, weights);
  } else {
    std::vector<Product> planned = plan(numbers, rows, in, weights);
    prepare(pool, x, rows, in, around, planned);
    multiply(pool, rows, planned);
  }
  for (const Weight& weight : weights) leave(pool, rows, around, weight);
  return {};
}

std::string rows(Pool& pool, std::string_view encoding_name, const uint8_t* packed, int64_t packed_size,
                 const int32_t* ids, int64_t n, float* y, int64_t width) {
  const auto split = encoding_name == kSplitName ? split_of_size(packed_size, width) : std::nullopt;
  if (split) {
    const std::string wrong = rows(pool, "Q5_0", packed, split->panels_size, ids, n, y, width);
    for (int64_t i = 0; i < n; ++i) {
      if (ids[i] >= 0 && ids[i] < split->out) add_fine(*split, packed, ids[i], y + i * width);
    }
    return wrong;
  }
  const auto encoding = find_encoding(encoding_name);
  if (!encoding) return "rows has no encoding " + std::string(encoding_name) + ".";
  const auto panel = panel_bytes(*encoding, width);
  if (n < 0 || !panel || *panel == 0 || packed_size % *panel != 0) {
    return "rows was given " + std::to_string(packed_size) + " packed bytes, which are no " +
           std::string(encoding_name) + " table of width " + std::to_string(width) + ".";
  }
  const RowsArgs args{packed, *panel, packed_size / *panel, ids, width, y};
  const int64_t count = parts(n * *panel, std::min(n, 4 * pool.threads()));
  parallel_for(pool, count, [&](int64_t i) { kernels().rows[*encoding](args, n * i / count, n * (i + 1) / count); });
  return {};
}

}  // namespace gemwright
