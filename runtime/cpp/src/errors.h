// Every error a caller can cause, as one exception inside the library and a status outside of it.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "llama_runtime.h"

namespace llama {

// A message says what, got and allowed, without a full stop; the hint proposes the remedy.
class Error : public std::exception {
public:
    Error(lr_status status, std::string message, std::string hint = {})
        : status(status), message(std::move(message)), hint(std::move(hint)) {}
    const char* what() const noexcept override { return message.c_str(); }

    lr_status status;
    std::string message;
    std::string hint;
};

inline const char* const k_copy_again = "copy the whole bundle again, or export the checkpoint again";

}  // namespace llama
