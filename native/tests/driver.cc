// Runs every kernel of every instruction set over odd shapes, without Python or XLA, for sanitizers and emulators. Each
// buffer is a heap block of its exact size. Results are compared with those of the portable kernels, which the Python
// tests compare with numpy.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "ops/ops.h"
#include "ops/repack.h"
#include "ops/split.h"

namespace {

using namespace gemwright;

// Starts a thread per task: less orderly than a real pool.
class Threads final : public Pool {
 public:
  explicit Threads(int64_t count) : count_(count) {}
  ~Threads() override {
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t threads() const override { return count_; }
  void schedule(std::function<void()> task) override { threads_.emplace_back(std::move(task)); }

 private:
  int64_t count_;
  std::vector<std::thread> threads_;
};

struct Case {
  const char* encoding;
  int64_t out, in, rows;
};

struct Results {
  std::vector<float> eight, sixteen, exact, decoded;
};

int passed = 0, failed = 0;

void check(bool ok, const Case& c, const char* isa, const char* what) {
  ++(ok ? passed : failed);
  if (ok) return;
  std::printf("FAILED %s %s [%ld, %ld] rows %ld: %s\n", isa, c.encoding, long(c.out), long(c.in), long(c.rows), what);
}

// Returns bytes that are small normal numbers in every float format.
std::vector<uint8_t> random_weight(int64_t bytes, std::mt19937& random) {
  std::vector<uint8_t> weight(bytes);
  for (uint8_t& byte : weight) byte = 16 + random() % 32;
  return weight;
}

Results run(const Case& c, const std::vector<uint8_t>& packed, const std::vector<float>& x,
            const std::vector<int32_t>& ids, int64_t threads) {
  Results results;
  results.eight.resize(c.rows * c.out);
  results.sixteen.resize(c.rows * c.out);
  results.exact.resize(c.rows * c.out);
  results.decoded.resize(ids.size() * c.in);
  Threads pool(threads);
  const int64_t size = packed.size();
  std::string error;
  const auto multiply = [&](bool exact, int bits, std::vector<float>& y) {
    Fusion fusion{};
    fusion.activation_bits = bits;
    const Weight weight{c.encoding, packed.data(), size, c.out, y.data()};
    error += fused_linear(pool, exact, x.data(), c.rows, c.in, fusion, {weight});
  };
  multiply(false, 8, results.eight);
  multiply(false, 16, results.sixteen);
  multiply(true, 8, results.exact);
  error += rows(pool, c.encoding, packed.data(), size, ids.data(), ids.size(), results.decoded.data(), c.in);
  check(error.empty(), c, kernels().name, error.c_str());
  return results;
}

// Differences are relative to the largest value, or to `largest` if that is more.
bool close(const std::vector<float>& a, const std::vector<float>& b, double tolerance = 2e-5, double largest = 0) {
  for (float value : a) largest = std::fabs(value) > largest ? std::fabs(value) : largest;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(double(a[i]) - b[i]) <= tolerance * largest)) return false;
  }
  return true;
}

// With many rows, activations may be rounded to bfloat16 where the portable kernels round to 8 bits.
double tolerance(int64_t rows) { return kernels().bfloat16.prepare != nullptr && rows > 64 ? 1e-2 : 2e-5; }

// 16-bit activations are the sums of two parts, or are rounded once.
double tolerance_16_bit(int64_t rows) { return kernels().int16.matmul[kQ8_0] != nullptr ? 1e-4 : tolerance(rows); }

void compare(const Case& c, std::mt19937& random) {
  const Encoding encoding = *find_encoding(c.encoding);
  const std::vector<uint8_t> source = random_weight(*source_bytes(encoding, c.out, c.in), random);
  std::vector<uint8_t> packed(*packed_bytes(encoding, c.out, c.in));
  repack(encoding, source.data(), c.out, c.in, packed.data(), 3);
  std::vector<float> x(c.rows * c.in);
  for (float& value : x) value = std::normal_distribution<float>()(random);
  const int32_t end = static_cast<int32_t>(c.out);
  const std::vector<int32_t> ids = {0, end - 1, end, 1 << 30, -1, -(1 << 30), end / 2, end / 2};

  select_isa("portable");
  const Results expected = run(c, packed, x, ids, 1);
  for (int i = 0; const char* isa = isa_name(i); ++i) {
    select_isa(isa);
    for (int64_t threads : {1, 4}) {
      const Results results = run(c, packed, x, ids, threads);
      check(close(expected.eight, results.eight, tolerance(c.rows)), c, isa, "8-bit product");
      check(close(expected.sixteen, results.sixteen, tolerance_16_bit(c.rows)), c, isa, "16-bit product");
      check(close(expected.exact, results.exact), c, isa, "exact product");
      const size_t bytes = expected.decoded.size() * sizeof(float);
      check(bytes == 0 || std::memcmp(expected.decoded.data(), results.decoded.data(), bytes) == 0, c, isa, "look-up");
    }
  }
}

// All that is fused with a product, with two weights and then with one.
std::vector<float> fuse(const std::vector<std::vector<uint8_t>>& packed, const std::vector<float>& numbers,
                        int64_t rows, int64_t in, int64_t out, int64_t threads) {
  Threads pool(threads);
  std::vector<float> first(rows * out), second(rows * out), third(rows * out);
  const std::vector<float> x(numbers.begin(), numbers.begin() + rows * in);
  const std::vector<float> gate(numbers.begin() + rows * in, numbers.begin() + 2 * rows * in);
  const std::vector<float> gain(numbers.begin(), numbers.begin() + in), post(numbers.end() - out, numbers.end());
  const Weight one{"Q5_0", packed[0].data(), int64_t(packed[0].size()), out, first.data()};
  const Weight other{"Q8_0", packed[1].data(), int64_t(packed[1].size()), out, second.data()};
  std::string error =
      fused_linear(pool, false, x.data(), rows, in, {gain.data(), nullptr, nullptr, nullptr, 1e-6f, 8}, {one, other});
  Weight last = other;
  last.y = third.data();
  error += fused_linear(pool, false, x.data(), rows, in, {nullptr, gate.data(), post.data(), first.data(), 1e-6f, 16},
                        {last});
  check(error.empty(), {"fused_linear", out, in, rows}, kernels().name, error.c_str());
  first.insert(first.end(), second.begin(), second.end());
  first.insert(first.end(), third.begin(), third.end());
  return first;
}

void fuse(std::mt19937& random) {
  constexpr int64_t kOut = 37, kIn = 96;
  std::vector<std::vector<uint8_t>> packed;
  for (const Encoding encoding : {kQ5_0, kQ8_0}) {
    const auto source = random_weight(*source_bytes(encoding, kOut, kIn), random);
    packed.emplace_back(*packed_bytes(encoding, kOut, kIn));
    repack(encoding, source.data(), kOut, kIn, packed.back().data(), 1);
  }
  for (int64_t rows : {1, 3, 8, 40, 100}) {
    std::vector<float> numbers(2 * rows * kIn);
    for (float& value : numbers) value = std::normal_distribution<float>()(random);
    select_isa("portable");
    const auto expected = fuse(packed, numbers, rows, kIn, kOut, 1);
    for (int i = 0; const char* isa = isa_name(i); ++i) {
      select_isa(isa);
      const auto found = fuse(packed, numbers, rows, kIn, kOut, 4);
      check(close(expected, found, tolerance(rows)), {"fused_linear", kOut, kIn, rows}, isa, "values");
    }
  }
}

// A split weight: all products, rows, and the largest products for odd limits and counts.
std::vector<float> split(const Split& layout, const std::vector<uint8_t>& source, const std::vector<float>& x,
                         int64_t rows_of_x, int64_t threads) {
  Threads pool(threads);
  const Case c{"split", layout.out, layout.in, rows_of_x};
  std::vector<uint8_t> packed(layout.size);
  const int64_t front = layout.out / 2 / kLanes * kLanes, row_bytes = source.size() / layout.out;
  bool fits = repack_split(layout, source.data(), 0, front, packed.data(), 3);
  fits &= repack_split(layout, source.data() + front * row_bytes, front, layout.out - front, packed.data(), 2);
  check(fits, c, kernels().name, "repack");
  std::vector<float> y(rows_of_x * layout.out);
  const int64_t size = packed.size();
  std::string error = fused_linear(pool, false, x.data(), rows_of_x, layout.in, {},
                                   {{kSplitName, packed.data(), size, layout.out, y.data()}});
  const std::vector<int32_t> ids = {0, int32_t(layout.out) - 1, int32_t(layout.out), -1};
  std::vector<float> decoded(ids.size() * layout.in);
  error += rows(pool, kSplitName, packed.data(), size, ids.data(), ids.size(), decoded.data(), layout.in);
  y.insert(y.end(), decoded.begin(), decoded.begin() + 2 * layout.in);
  for (int64_t count : {int64_t{1}, std::min<int64_t>(layout.out, 20)}) {
    const int64_t limit = std::max(count, layout.out - 1);
    std::vector<float> values(rows_of_x * count);
    std::vector<int32_t> where(rows_of_x * count);
    error += top(pool, kSplitName, x.data(), rows_of_x, layout.in, packed.data(), size, layout.out, limit, count,
                 values.data(), where.data());
    y.insert(y.end(), values.begin(), values.end());
  }
  check(error.empty(), c, kernels().name, error.c_str());
  return y;
}

void split(std::mt19937& random) {
  for (const auto& [out, in] : std::vector<std::pair<int64_t, int64_t>>{{1, 32}, {37, 96}, {300, 640}, {9000, 160}}) {
    const Split layout = *split_layout(out, in);
    const auto source = random_weight(*source_bytes(kQ8_0, out, in), random);
    for (int64_t rows_of_x : {1, 11}) {
      std::vector<float> x(rows_of_x * in);
      for (float& value : x) value = std::normal_distribution<float>()(random);
      select_isa("portable");
      const auto expected = split(layout, source, x, rows_of_x, 1);
      for (int i = 0; const char* isa = isa_name(i); ++i) {
        select_isa(isa);
        const auto found = split(layout, source, x, rows_of_x, 4);
        check(close(expected, found, tolerance_16_bit(1)), {"split", out, in, rows_of_x}, isa, "values");
      }
    }
  }
}

void check_errors(std::mt19937& random) {
  Threads pool(2);
  const Case c{"Q4_K", 16, 256, 1};
  const std::vector<uint8_t> packed = random_weight(2368, random);
  std::vector<float> x(256), y(16);
  const auto call = [&](const char* encoding, int64_t size, int64_t in, int64_t out) {
    return !fused_linear(pool, false, x.data(), 1, in, {}, {{encoding, packed.data(), size, out, y.data()}}).empty();
  };
  check(!call("Q4_K", 2368, 256, 16), c, "", "a correct call");
  check(call("Q4_K", 2367, 256, 16), c, "", "one byte missing");
  check(call("Q4_K", 2368, 255, 16), c, "", "a partial block");
  check(call("Q4_K", 2368, 256, 17), c, "", "one row too many");
  check(call("Q4_K", 2368, int64_t{1} << 40, int64_t{1} << 40), c, "", "an overflowing size");
  check(call("Q4_1", 2368, 256, 16), c, "", "an encoding without kernels");
}

}  // namespace

// Attends chunk by chunk, with padding, and returns all results.
template <class Number>
std::vector<float> attend_in_chunks(int64_t heads, int64_t kv_heads, int64_t slots, int64_t window, float cap,
                                    int64_t threads) {
  constexpr int64_t kBatch = 2, kWidth = 48, kRotated = 32;
  std::mt19937 random(1);
  const auto numbers = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = std::normal_distribution<float>()(random);
    return values;
  };
  const auto gain = numbers(kWidth);
  std::vector<Number> keys(kBatch * kv_heads * slots * kWidth), values = keys;
  std::vector<float> all;
  std::vector<int32_t> lengths(kBatch);
  for (int64_t tokens : {1, 5, 19, 1, 40, 1, 1}) {
    std::vector<int32_t> positions(kBatch * tokens, -1), after = lengths;
    for (int64_t row = 0; row < kBatch; ++row) {
      for (int64_t t = 0; t < tokens; ++t) {
        if (tokens == 1 || (t + row) % 4 != 0) positions[row * tokens + t] = after[row]++;
      }
    }
    const auto q = numbers(kBatch * tokens * heads * kWidth), k = numbers(kBatch * tokens * kv_heads * kWidth),
               v = numbers(kBatch * tokens * kv_heads * kWidth), rotation = numbers(kBatch * tokens * kRotated);
    std::vector<float> y(q.size());
    AttentionArgs args{};
    args.batch = kBatch, args.tokens = tokens, args.heads = heads, args.kv_heads = kv_heads, args.width = kWidth;
    args.q = q.data(), args.k = k.data(), args.v = v.data(), args.positions = positions.data();
    args.lengths = lengths.data(), args.rotation = rotation.data(), args.rotated = kRotated;
    args.q_gain = args.k_gain = gain.data(), args.window = window, args.scale = 0.1f, args.cap = cap;
    args.eps = 1e-6f, args.y = y.data();
    Threads pool(threads);
    const std::string error = attention<Number>(pool, args, {keys.data(), values.data(), slots});
    check(error.empty(), {"attention", heads, slots, tokens}, kernels().name, error.c_str());
    all.insert(all.end(), y.begin(), y.end());
    lengths = after;
  }
  return all;
}

template <class Number>
void attend(double tolerance) {
  for (int64_t slots : {1, 7, 64}) {
    for (float cap : {0.0f, 5.0f}) {
      for (int64_t group : {1, 3, 11}) {
        const int64_t window = slots < 64 ? slots : int64_t{1} << 62;
        select_isa("portable");
        const auto expected = attend_in_chunks<Number>(2 * group, 2, slots, window, cap, 1);
        for (int i = 0; const char* isa = isa_name(i); ++i) {
          select_isa(isa);
          const auto found = attend_in_chunks<Number>(2 * group, 2, slots, window, cap, 3);
          check(close(expected, found, tolerance), {"attention", 2 * group, slots, 0}, isa, "attention output");
        }
      }
    }
  }
}

// The recurrent unit over sequences with resets and padding.
template <class Number>
std::vector<float> run_rg_lru(int64_t batch, int64_t tokens, int64_t blocks, int64_t width, int64_t threads) {
  std::mt19937 random(2);
  const int64_t channels = blocks * width;
  const auto numbers = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = std::normal_distribution<float>()(random);
    return values;
  };
  const auto weight = [&] {
    const std::vector<uint8_t> bytes = random_weight(channels * width * sizeof(Number), random);
    std::vector<Number> values(channels * width);
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  std::vector<int32_t> positions(batch * tokens);
  for (int32_t& position : positions) position = int32_t(random() % 4) - 1;
  const auto u = numbers(batch * tokens * channels), initial = numbers(batch * channels), decay = numbers(channels);
  const auto input_bias = numbers(channels), decay_bias = numbers(channels);
  const auto input_gate = weight(), decay_gate = weight();
  std::vector<float> h(u.size());
  Threads pool(threads);
  const std::string error =
      rg_lru<Number>(pool, {batch, tokens, blocks, width, u.data(), positions.data(), initial.data(), input_gate.data(),
                            decay_gate.data(), input_bias.data(), decay_bias.data(), decay.data(), h.data()});
  check(error.empty(), {"rg_lru", blocks, width, batch * tokens}, kernels().name, error.c_str());
  return h;
}

template <class Number>
void run_rg_lru() {
  for (int64_t width : {1, 8, 16, 37, 128, 300}) {
    for (int64_t tokens : {0, 1, 2, 13}) {
      for (int64_t batch : {1, 3}) {
        select_isa("portable");
        const auto expected = run_rg_lru<Number>(batch, tokens, 3, width, 1);
        for (int i = 0; const char* isa = isa_name(i); ++i) {
          select_isa(isa);
          const auto found = run_rg_lru<Number>(batch, tokens, 3, width, 4);
          check(close(expected, found), {"rg_lru", 3, width, batch * tokens}, isa, "states");
        }
      }
    }
  }
}

// The cross-entropy over labels, some of them outside the vocabulary.
std::vector<float> run_cross_entropy(int64_t tokens, int64_t width, int64_t vocabulary, float cap, int64_t threads) {
  std::mt19937 random(3);
  const auto numbers = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = std::normal_distribution<float>()(random);
    return values;
  };
  const auto hidden = numbers(tokens * width), head = numbers(vocabulary * width);
  std::vector<int32_t> targets(tokens);
  for (int32_t& target : targets) target = int32_t(random() % vocabulary);
  const std::unique_ptr<bool[]> learned(new bool[tokens + 1]);
  for (int64_t i = 0; i < tokens; ++i) learned[i] = i % 5 != 3;
  std::vector<float> results(tokens * (width + 1));
  Threads pool(threads);
  const std::string error = cross_entropy(pool, {tokens, width, vocabulary, hidden.data(), head.data(), targets.data(),
                                                 learned.get(), cap, results.data(), results.data() + tokens});
  check(error.empty(), {"cross_entropy", vocabulary, width, tokens}, kernels().name, error.c_str());
  return results;
}

void run_cross_entropy() {
  for (int64_t tokens : {0, 1, 40}) {
    for (int64_t width : {1, 37, 330}) {
      for (int64_t vocabulary : {1, 61, 2100}) {
        for (float cap : {0.0f, 5.0f}) {
          select_isa("portable");
          const auto expected = run_cross_entropy(tokens, width, vocabulary, cap, 1);
          for (int i = 0; const char* isa = isa_name(i); ++i) {
            select_isa(isa);
            const auto found = run_cross_entropy(tokens, width, vocabulary, cap, 3);
            check(close(expected, found, 2e-5, 1.0), {"cross_entropy", vocabulary, width, tokens}, isa,
                  "losses and gradients");
          }
        }
      }
    }
  }
}

int main() {
  std::mt19937 random(0);
  for (const char* encoding :
       {"F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}) {
    const std::string name(encoding);
    const int64_t block = name.back() == 'K' || name == "IQ4_XS" ? 256 : name.find('Q') != std::string::npos ? 32 : 1;
    for (int64_t rows : {0, 1, 2, 3, 7, 8, 17}) compare({encoding, 19, 3 * block, rows}, random);
    for (int64_t out : {1, 15, 16, 33}) compare({encoding, out, block, 5}, random);
    compare({encoding, 300, 1280, 40}, random);
    for (int64_t rows : {65, 81}) compare({encoding, 33, 1280, rows}, random);
    compare({encoding, 17, block, 1030}, random);
    if (block == 1) compare({encoding, 5, 259, 4}, random);
  }
  fuse(random);
  split(random);
  check_errors(random);
  attend<float>(2e-5);
  attend<Bfloat16>(1e-2);  // a key near a rounding boundary may go either way
  run_rg_lru<float>();
  run_rg_lru<Bfloat16>();
  run_cross_entropy();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
