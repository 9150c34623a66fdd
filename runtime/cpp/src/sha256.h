// SHA-256 (FIPS 180-4), for plans: they are code, and are not run before they are compared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llama {

// In hexadecimal digits.
std::string sha256(const std::vector<uint8_t>& data);

}  // namespace llama
