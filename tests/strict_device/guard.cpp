// The part of the strict device that torch wants in C++: one device of the type PrivateUse1, without kernels or memory of
// its own. The tensors on it are objects of Python (tensors.py) with their values on the CPU.
//
// Only these headers: torch/extension.h and pybind11 take many times as long to compile. Loading the library registers
// everything. Methods have no `override`, because older versions of torch lack some of them.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <mutex>
#include <set>

namespace {

// autograd asks the guard for devices and streams. There is one of each, and nothing to wait for.
struct Guard final : public c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::PrivateUse1;
  c10::DeviceType type() const { return static_type; }
  c10::Device exchangeDevice(c10::Device) const { return {static_type, 0}; }
  c10::Device getDevice() const { return {static_type, 0}; }
  void setDevice(c10::Device) const {}
  void uncheckedSetDevice(c10::Device) const noexcept {}
  c10::Stream getStream(c10::Device device) const noexcept {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept { return stream; }
  c10::DeviceIndex deviceCount() const noexcept { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Ordinary memory that is remembered as pinned, so that `tensor.is_pinned()` tells which copies wait for the device.
std::mutex pinning;
std::set<const void*> pinned;

void release(void* pointer) {
  {
    std::lock_guard<std::mutex> lock(pinning);
    pinned.erase(pointer);
  }
  std::free(pointer);
}

struct PinnedMemory final : public c10::Allocator {
  c10::DataPtr allocate(size_t bytes) {
    void* pointer = std::aligned_alloc(64, (bytes / 64 + 1) * 64);
    std::lock_guard<std::mutex> lock(pinning);
    pinned.insert(pointer);
    return {pointer, pointer, release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const { return release; }
  void copy_data(void* target, const void* source, size_t bytes) const { default_copy_data(target, source, bytes); }
};

struct Hooks final : public at::PrivateUse1HooksInterface {
  bool isBuilt() const { return true; }
  bool isAvailable() const { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const { return true; }
  c10::DeviceIndex deviceCount() const { return 1; }
  c10::DeviceIndex getCurrentDevice() const { return 0; }
  bool isPinnedPtr(const void* pointer) const {
    std::lock_guard<std::mutex> lock(pinning);
    return pinned.count(pointer) > 0;
  }
  c10::Allocator* getPinnedMemoryAllocator() const {
    static PinnedMemory memory;
    return &memory;
  }
};

const bool is_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

}  // namespace
