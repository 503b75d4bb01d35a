// How many threads compute. Autograd's threads compute with as many as the main thread chose.
//
// PyTorch keeps the number by thread, and a new thread starts with the last number that any thread
// set: a data loader's pinning thread sets 1. Where an accelerator computes, that matters to
// nobody; here it would leave every backward pass a single core.
#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>
#include <cstring>

#include "operators.h"

namespace offramp {
namespace {

std::atomic<int> chosen{0};

bool is_of_autograd() {
  char name[16] = "";  // the longest that Linux keeps
  pthread_getname_np(pthread_self(), name, sizeof(name));
  return std::strncmp(name, "pt_autograd", 11) == 0;
}

}  // namespace

void choose_threads(int count) { chosen = count; }

void follow_threads() {
  thread_local const bool follows = is_of_autograd();
  thread_local int followed = 0;
  const int count = chosen.load(std::memory_order_relaxed);
  if (!follows || followed == count) return;
  followed = count;
  if (at::get_num_threads() != count) at::set_num_threads(count);
}

}  // namespace offramp
