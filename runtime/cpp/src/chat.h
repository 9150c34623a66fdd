// Messages become a prompt, in which only the checkpoint's template writes control tokens.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "generate.h"

namespace llama {

using Message = std::pair<std::string, std::string>;  // role, content

// Throws LR_ERROR_CHAT where the bundle has no roles, or no place for these messages.
Prompt chat_prompt(const Model& model, const std::vector<Message>& messages);

}  // namespace llama
