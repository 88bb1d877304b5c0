// Random numbers of a card. See generators.cpp.

#pragma once

#include "card.h"

#include <ATen/core/Generator.h>

namespace memleak {

at::Generator new_generator(c10::DeviceIndex device);

// The one that a card's operations take without being told.
const at::Generator& default_generator(c10::DeviceIndex device);

// Another operation took numbers of it.
void advance(at::Generator generator);

// What the CPU is to begin with so that its numbers are this generator's next ones.
uint64_t next_seed(const at::Generator& generator);

}  // namespace memleak
