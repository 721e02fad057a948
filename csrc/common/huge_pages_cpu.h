// Asks for huge pages behind a fresh, untouched CPU tensor: fewer page faults where it is first written.
#pragma once

#include "arguments.h"

namespace chaos_ext {

void use_huge_pages(const Tensor& t);  // any shape; other devices than the CPU: void

}  // namespace chaos_ext
