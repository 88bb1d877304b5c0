// The threads in which torch runs the backward passes of a card.
//
// torch makes them once, at the first backward pass of the process, for the devices that it knows by then. A process that
// trained on the CPU before there was a card has none: they are made now, by the same function of torch.

#include <torch/csrc/autograd/engine.h>

#include <exception>
#include <string>

namespace memleak {
namespace {

// torch offers these to engines of other kinds.
struct Reach final : torch::autograd::Engine {
  static bool has_threads(torch::autograd::Engine& engine) {
    return !(engine.*(&Reach::device_ready_queues_)).empty();
  }
  static void start_threads(torch::autograd::Engine& engine) {
    (engine.*(&Reach::start_device_threads))();
  }
};

std::string no_threads;

}  // namespace
}  // namespace memleak

extern "C" {

// The card has to be on. Why there are none, or null.
const char* memleak_card_threads(void) {
  try {
    torch::autograd::Engine& engine = torch::autograd::Engine::get_default_engine();
    engine.initialize_device_threads_pool();
    if (!memleak::Reach::has_threads(engine)) {
      memleak::Reach::start_threads(engine);
    }
    return nullptr;
  } catch (const std::exception& error) {
    memleak::no_threads = error.what();
    return memleak::no_threads.c_str();
  }
}
}
