// How many processor cores this process may really use.
#pragma once

namespace llama {

// Physical cores that affinity and container quota leave to this process, at least 1.
int available_cores();

}  // namespace llama
