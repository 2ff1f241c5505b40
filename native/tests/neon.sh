#!/bin/sh
# Build tests/driver.cc and the kernels for 64-bit Arm with a cross compiler, and run it in an emulator.
# On Debian: apt install g++-aarch64-linux-gnu qemu-user
set -eu
native=$(dirname "$(dirname "$(realpath "$0")")")
build=${1:-$native/build/neon}
cmake -S "$native" -B "$build" -DGEMWRIGHT_DRIVER=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-O1 -g1 -static" >/dev/null
cmake --build "$build" --parallel
qemu-aarch64 "$build/driver"
