// Runs an ExecuTorch language model program and reports what it cost, as one JSON object on standard output.
//
//   runner --program model.pte --prompt 1,2,3 [--new 16] [--warmup 1] [--rounds 3] [--windows FILE --logits FILE]
//          [--operators LIBRARY,LIBRARY]
//
// The program takes token ids (1, n) and positions (n), or the first position (1), all int64, and gives logits, float32,
// of every position (1, n, vocabulary) or of the last one. --windows names a text file with a window of token ids a
// line; the logits of every window go to the file of --logits as float32 (windows, tokens, vocabulary). --operators
// names libraries that are loaded, in this order, if the program has operators that are not here. Errors are JSON too,
// status 1.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include <dlfcn.h>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/runtime.h>

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Program;

namespace {

// A text as JSON writes it.
std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (const char one : text) {
    if (one == '"' || one == '\\') {
      found += '\\';
      found += one;
    } else if (static_cast<unsigned char>(one) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", one);
      found += code;
    } else {
      found += one;
    }
  }
  return found + '"';
}

[[noreturn]] void fail(const std::string& stage, const std::string& words, int code = 0) {
  std::printf("{\"error\": %s, \"stage\": %s, \"code\": %d}\n", quoted(words).c_str(), quoted(stage).c_str(), code);
  std::exit(1);
}

void check(Error error, const std::string& stage) {
  if (error != Error::Ok) {
    fail(stage, executorch::runtime::to_string(error), static_cast<int>(error));
  }
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A number that the kernel tells of this process; -1 if it does not.
long long told(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(name, 0) == 0) {
      return std::atoll(line.c_str() + name.size());
    }
  }
  return -1;
}

// The high-water mark of its resident set, in bytes.
long long peak_bytes() {
  const long long found = told("VmHWM:");
  return found < 0 ? -1 : found * 1024;
}

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> found;
  const char* at = text.c_str();
  while (*at) {
    char* end = nullptr;
    const long long value = std::strtoll(at, &end, 10);
    if (end == at) {
      ++at;
    } else {
      found.push_back(value);
      at = end;
    }
  }
  return found;
}

std::vector<std::string> paths(const std::string& text) {
  std::vector<std::string> found;
  std::stringstream in(text);
  for (std::string path; std::getline(in, path, ',');) {
    found.push_back(path);
  }
  return found;
}

class Model {
 public:
  Model(const std::string& program, const std::vector<std::string>& operators)
      : module_(program, Module::LoadMode::Mmap) {
    // A file that is cut off or damaged is an error here, not a crash later.
    check(module_.load(Program::Verification::InternalConsistency), "load");
    const auto names = module_.method_names();
    check(names.error(), "load");
    context = names->count("get_max_context_len") ? constant("get_max_context_len") : 0;
    vocabulary = names->count("get_vocab_size") ? constant("get_vocab_size") : 0;
    Error loaded = module_.load_method("forward");
    if (loaded == Error::OperatorMissing && !operators.empty()) {
      for (const auto& path : operators) {
        if (!dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
          fail("operators", dlerror());
        }
      }
      loaded = module_.load_method("forward");
    }
    check(loaded, "load");
    const auto meta = module_.method_meta("forward");
    check(meta.error(), "load");
    const auto positions = meta->input_tensor_meta(1);
    check(positions.error(), "load");
    first_position_ = positions->sizes().size() == 1 && positions->sizes()[0] == 1;
  }

  // Run tokens from a position on; the returned tensor lives until the next call.
  Tensor forward(std::vector<int64_t>& tokens, int64_t position, const char* stage) {
    std::vector<int64_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), position);
    const auto count = static_cast<int>(tokens.size());
    auto ids = from_blob(tokens.data(), {1, count}, ScalarType::Long);
    auto at = from_blob(positions.data(), {first_position_ ? 1 : count}, ScalarType::Long);
    auto outputs = module_.forward({EValue(ids), EValue(at)});
    check(outputs.error(), stage);
    Tensor logits = outputs->at(0).toTensor();
    if (logits.scalar_type() != ScalarType::Float) {
      fail(stage, "the logits are not float32");
    }
    return logits;
  }

  int64_t context = 0;
  int64_t vocabulary = 0;

 private:
  int64_t constant(const std::string& name) {
    auto value = module_.execute(name);
    check(value.error(), "load");
    return value->at(0).toInt();
  }

  Module module_;
  bool first_position_ = false;
};

int64_t most_likely(const Tensor& logits) {
  const auto vocabulary = logits.size(logits.dim() - 1);
  const float* last = logits.const_data_ptr<float>() + logits.numel() - vocabulary;
  int64_t best = 0;
  for (int64_t token = 0; token < vocabulary; ++token) {
    if (!std::isfinite(last[token])) {
      fail("run", "a logit is not finite");
    }
    if (last[token] > last[best]) {
      best = token;
    }
  }
  return best;
}

void list(const char* name, const std::vector<double>& values) {
  std::printf(", \"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i) {
    std::printf("%s%.9g", i ? ", " : "", values[i]);
  }
  std::printf("]");
}

// The program's own limits, told before anything runs.
void admit(const Model& model, const std::vector<int64_t>& tokens, int64_t more) {
  const auto wanted = static_cast<int64_t>(tokens.size()) + more;
  if (model.context && wanted > model.context) {
    fail("prompt", std::to_string(tokens.size()) + " tokens and " + std::to_string(more) +
        " new ones do not fit the program's context of " + std::to_string(model.context));
  }
  for (const int64_t token : tokens) {
    if (token < 0 || (model.vocabulary && token >= model.vocabulary)) {
      fail("prompt", "token " + std::to_string(token) + " is outside of the program's vocabulary of " +
          std::to_string(model.vocabulary));
    }
  }
}

} // namespace

int main(int argc, char** argv) {
  std::string program, prompt, windows, logits, operators;
  int64_t wanted = 16, warmup = 1, rounds = 3;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--program") program = value;
    else if (flag == "--prompt") prompt = value;
    else if (flag == "--windows") windows = value;
    else if (flag == "--logits") logits = value;
    else if (flag == "--operators") operators = value;
    else if (flag == "--new") wanted = std::atoll(value.c_str());
    else if (flag == "--warmup") warmup = std::atoll(value.c_str());
    else if (flag == "--rounds") rounds = std::atoll(value.c_str());
    else fail("arguments", "unknown flag " + flag);
  }
  std::vector<int64_t> tokens = numbers(prompt);
  if (program.empty() || tokens.empty() || wanted < 1 || windows.empty() != logits.empty()) {
    fail("arguments", "needs --program and --prompt, --new above 0, --windows together with --logits");
  }
  executorch::runtime::runtime_init();
  const double start = now();
  Model model(program, paths(operators));
  const double loaded = now();
  admit(model, tokens, wanted);

  std::vector<double> prefill, decode;
  std::vector<int64_t> answer;
  for (int64_t round = 0; round < warmup + rounds; ++round) {
    answer.clear();
    const double begin = now();
    int64_t next = most_likely(model.forward(tokens, 0, "prefill"));
    const double first = now();
    answer.push_back(next);
    std::vector<int64_t> one(1);
    for (int64_t step = 1; step < wanted; ++step) {
      one[0] = next;
      next = most_likely(model.forward(one, static_cast<int64_t>(tokens.size()) + step - 1, "decode"));
      answer.push_back(next);
    }
    prefill.push_back(first - begin);
    decode.push_back(now() - first);
  }
  const long long peak = peak_bytes();
  // Those that the rounds have made and this one.
  const long long threads = told("Threads:");

  int64_t scored = 0;
  if (!windows.empty()) {
    std::ifstream in(windows);
    std::ofstream out(logits, std::ios::binary);
    std::string line;
    while (std::getline(in, line)) {
      std::vector<int64_t> window = numbers(line);
      if (window.empty()) continue;
      admit(model, window, 1);
      std::vector<int64_t> part(window.begin(), window.begin() + 1);
      const Tensor probe = model.forward(window, 0, "windows");
      if (probe.numel() / probe.size(probe.dim() - 1) == static_cast<int64_t>(window.size())) {
        out.write(reinterpret_cast<const char*>(probe.const_data_ptr<float>()), probe.nbytes());
      } else {
        // The program gives the logits of its last position only: one token at a time.
        for (size_t position = 0; position < window.size(); ++position) {
          part[0] = window[position];
          const Tensor found = model.forward(part, static_cast<int64_t>(position), "windows");
          out.write(reinterpret_cast<const char*>(found.const_data_ptr<float>()), found.nbytes());
        }
      }
      ++scored;
    }
    if (!out.flush()) fail("windows", "the logits could not be written");
  }

  std::printf("{\"load_seconds\": %.9g, \"peak_bytes\": %lld, \"prompt_tokens\": %zu, \"new_tokens\": %lld", loaded - start,
      peak, tokens.size(), static_cast<long long>(wanted));
  std::printf(", \"warmup\": %lld, \"context\": %lld, \"vocabulary\": %lld, \"windows\": %lld",
      static_cast<long long>(warmup), static_cast<long long>(model.context), static_cast<long long>(model.vocabulary),
      static_cast<long long>(scored));
  if (threads > 0) std::printf(", \"threads\": %lld", threads);
  list("prefill_seconds", prefill);
  list("decode_seconds", decode);
  list("tokens", std::vector<double>(answer.begin(), answer.end()));
  std::printf("}\n");
  return 0;
}
