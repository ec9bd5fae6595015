// Force-included into every mlx-c source on Linux. mlx-c formats a handful of
// error messages with std::format, which GCC 12's library (Debian 12) lacks.
// Where the library has <format> this header only includes it.
#pragma once

#if __has_include(<format>)
#include <format>
#endif

#ifndef __cpp_lib_format
#include <cstddef>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace planaria_format {

// Copies `pattern` up to its next "{}" and steps past it. Anything else in
// braces is refused: a new mlx-c that needs more must not print nonsense.
inline bool next_field(std::ostringstream& out, std::string_view& pattern) {
  const std::size_t brace = pattern.find_first_of("{}");
  if (brace == std::string_view::npos) {
    out << pattern;
    pattern = {};
    return false;
  }
  if (pattern.substr(brace, 2) != "{}") {
    throw std::logic_error("format_shim.h understands only plain {} fields");
  }
  out << pattern.substr(0, brace);
  pattern.remove_prefix(brace + 2);
  return true;
}

} // namespace planaria_format

namespace std {

// Adding to namespace std is formally not allowed; it is confined to this one
// static library, and only where the standard library has no such name.
template <class... Args>
string format(string_view pattern, const Args&... args) {
  ostringstream out;
  [[maybe_unused]] const auto put = [&](const auto& value) {
    if (planaria_format::next_field(out, pattern)) {
      out << value;
    }
  };
  (put(args), ...);
  out << pattern;
  return out.str();
}

} // namespace std
#endif
