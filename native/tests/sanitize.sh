#!/bin/sh
# Build tests/driver.cc and the kernels with AddressSanitizer and UndefinedBehaviorSanitizer, and run it.
set -eu
native=$(dirname "$(dirname "$(realpath "$0")")")
build=${1:-$native/build/sanitize}
cmake -S "$native" -B "$build" -DGEMWRIGHT_DRIVER=ON -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" >/dev/null
cmake --build "$build" --parallel
"$build/driver"
