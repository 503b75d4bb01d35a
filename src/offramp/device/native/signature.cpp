#include "signature.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>
#include <unordered_map>

namespace offramp {
namespace {

// Elements that exist: a dimension that is only repeated counts once.
int64_t distinct(const at::Tensor& tensor) {
  int64_t count = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.stride(d) != 0 || tensor.size(d) == 0) count *= tensor.size(d);
  }
  return count;
}

void write(std::ostringstream& out, c10::IntArrayRef numbers) {
  out << '[';
  for (size_t i = 0; i < numbers.size(); ++i) out << (i == 0 ? "" : ",") << numbers[i];
  out << ']';
}

void write(std::ostringstream& out, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    out << "null";
    return;
  }
  const bool strided = tensor.layout() == c10::kStrided && !tensor.is_nested();
  if (!strided) {
    out << R"({"count":1,"numel":)" << tensor.numel() << R"(,"dtype":")"
        << dtype_name(tensor.scalar_type()) << R"(","bytes":)"
        << tensor.numel() * static_cast<int64_t>(tensor.itemsize()) << '}';
    return;
  }
  out << "[\"" << dtype_name(tensor.scalar_type()) << "\",";
  write(out, tensor.sizes());
  out << ',';
  write(out, tensor.strides());
  out << ']';
}

template <class Each>
void write_sum(std::ostringstream& out, const Each& tensors) {
  int64_t count = 0, numel = 0, bytes = 0;
  const char* dtype = "";
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    if (count++ == 0) dtype = dtype_name(tensor.scalar_type());
    numel += tensor.numel();
    bytes += distinct(tensor) * static_cast<int64_t>(tensor.itemsize());
  }
  out << R"({"count":)" << count << R"(,"numel":)" << numel << R"(,"dtype":")" << dtype
      << R"(","bytes":)" << bytes << '}';
}

void write_number(std::ostringstream& out, double value) {
  if (std::isfinite(value)) {
    out << value;
  } else {
    out << '"' << value << '"';
  }
}

bool write_value(std::ostringstream& out, const c10::IValue& value) {
  if (value.isBool()) {
    out << (value.toBool() ? "true" : "false");
  } else if (value.isInt()) {
    out << value.toInt();
  } else if (value.isDouble()) {
    write_number(out, value.toDouble());
  } else if (value.isString()) {
    out << quoted(value.toStringRef());
  } else if (value.isIntList()) {
    write(out, value.toIntVector());
  } else if (value.isBoolList()) {
    out << '[';
    const auto list = value.toBoolList();
    for (size_t i = 0; i < list.size(); ++i)
      out << (i == 0 ? "" : ",") << (list[i] ? "true" : "false");
    out << ']';
  } else {
    return false;
  }
  return true;
}

uint64_t bits_of(double number) {
  uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof(bits));
  return bits;
}

uint64_t mix_value(uint64_t key, const c10::IValue& value, bool& exact) {
  if (value.isTensor()) return mix(key, value.toTensor());
  if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) key = mix(key, tensor);
    return mix(key, 1);
  }
  if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
      key = mix(key, tensor.value_or(at::Tensor()));
    }
    return mix(key, 2);
  }
  if (value.isNone()) return mix(key, 3);
  if (value.isBool()) return mix(key, value.toBool() ? 5 : 4);
  if (value.isInt()) return mix(key, static_cast<uint64_t>(value.toInt()));
  if (value.isDouble()) return mix(key, bits_of(value.toDouble()));
  if (value.isString()) return mix(key, std::hash<std::string>{}(value.toStringRef()));
  if (value.isIntList()) {
    for (const int64_t number : value.toIntVector()) key = mix(key, static_cast<uint64_t>(number));
    return mix(key, 6);
  }
  if (value.isDoubleList()) {
    for (const double number : value.toDoubleVector()) key = mix(key, bits_of(number));
    return mix(key, 10);
  }
  if (value.isBoolList()) {
    for (const bool each : value.toBoolList()) key = mix(key, each ? 5 : 4);
    return mix(key, 11);
  }
  if (value.isDevice() || value.isGenerator()) return mix(key, 7);
  exact = false;
  return mix(key, 8);
}

}  // namespace

const char* dtype_name(c10::ScalarType type) {
  using T = c10::ScalarType;
  static const std::unordered_map<T, const char*> names{{T::Byte, "uint8"},
                                                        {T::Char, "int8"},
                                                        {T::Short, "int16"},
                                                        {T::Int, "int32"},
                                                        {T::Long, "int64"},
                                                        {T::Half, "float16"},
                                                        {T::Float, "float32"},
                                                        {T::Double, "float64"},
                                                        {T::ComplexHalf, "complex32"},
                                                        {T::ComplexFloat, "complex64"},
                                                        {T::ComplexDouble, "complex128"},
                                                        {T::Bool, "bool"},
                                                        {T::BFloat16, "bfloat16"},
                                                        {T::UInt16, "uint16"},
                                                        {T::UInt32, "uint32"},
                                                        {T::UInt64, "uint64"},
                                                        {T::Float8_e5m2, "float8_e5m2"},
                                                        {T::Float8_e4m3fn, "float8_e4m3fn"},
                                                        {T::Float8_e5m2fnuz, "float8_e5m2fnuz"},
                                                        {T::Float8_e4m3fnuz, "float8_e4m3fnuz"},
                                                        {T::Float8_e8m0fnu, "float8_e8m0fnu"},
                                                        {T::Float4_e2m1fn_x2, "float4_e2m1fn_x2"}};
  const auto found = names.find(type);
  return found == names.end() ? c10::toString(type) : found->second;
}

uint64_t mix(uint64_t key, uint64_t value) {
  key ^= value + 0x9E3779B97F4A7C15ULL + (key << 6) + (key >> 2);
  key *= 0xBF58476D1CE4E5B9ULL;  // a step of splitmix64, so that each bit reaches each
  return key ^ (key >> 29);
}

uint64_t mix(uint64_t key, const at::Tensor& tensor) {
  if (!tensor.defined()) return mix(key, 9);
  key = mix(key, static_cast<uint64_t>(tensor.scalar_type()) + 16);
  if (tensor.layout() != c10::kStrided || tensor.is_nested()) {
    return mix(mix(key, static_cast<uint64_t>(tensor.numel())), 10);
  }
  for (const int64_t size : tensor.sizes()) key = mix(key, static_cast<uint64_t>(size));
  key = mix(key, static_cast<uint64_t>(tensor.dim()));
  for (const int64_t stride : tensor.strides()) key = mix(key, static_cast<uint64_t>(stride));
  return mix(key, tensor.unsafeGetTensorImpl()->is_wrapped_number() ? 1 : 0);
}

Signature sign(const Operator& op, const c10::Stack& stack) {
  Signature made;
  made.key = mix(0, reinterpret_cast<uintptr_t>(&op));
  for (size_t i = stack.size() - op.writes.size(); i < stack.size(); ++i) {
    made.key = mix_value(made.key, stack[i], made.exact);
  }
  return made;
}

std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const char letter : text) {
    const auto code = static_cast<unsigned char>(letter);
    if (letter == '"' || letter == '\\') {
      out << '\\' << letter;
    } else if (code < 0x20) {
      static constexpr char digits[] = "0123456789abcdef";
      out << "\\u00" << digits[code >> 4] << digits[code & 15];
    } else {
      out << letter;
    }
  }
  out << '"';
  return out.str();
}

std::string describe(const Operator& op, const c10::Stack& arguments,
                     const std::vector<at::Tensor>& outputs) {
  std::ostringstream inputs, values, out;
  out.precision(17);
  values.precision(17);
  const auto& schema = op.handle.schema().arguments();
  bool first_input = true, first_value = true;
  const auto input = [&]() -> std::ostringstream& {
    if (!first_input) inputs << ',';
    first_input = false;
    return inputs;
  };
  for (size_t i = 0; i < arguments.size() && i < schema.size(); ++i) {
    const auto& value = arguments[i];
    if (value.isTensor()) {
      write(input(), value.toTensor());
    } else if (value.isTensorList()) {
      write_sum(input(), value.toTensorVector());
    } else if (value.isOptionalTensorList()) {
      std::vector<at::Tensor> given;
      for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
        if (tensor) given.push_back(*tensor);
      }
      write_sum(input(), given);
    } else if (value.isNone() && schema[i].type()->str() == "Tensor?") {
      input() << "null";
    } else {
      std::ostringstream text;
      text.precision(17);
      if (!write_value(text, value)) continue;
      values << (first_value ? "" : ",") << quoted(schema[i].name()) << ':' << text.str();
      first_value = false;
    }
  }
  out << R"({"op":)" << quoted(op.name) << R"(,"in":[)" << inputs.str() << R"(],"out":[)";
  if (outputs.size() > 8) {
    write_sum(out, outputs);
  } else {
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (i > 0) out << ',';
      write(out, outputs[i]);
    }
  }
  out << R"(],"values":{)" << values.str() << "}}";
  return out.str();
}

}  // namespace offramp
