/* mlx-rs seeds its global random state from this Apple call (declared by the
 * mach-sys crate). Off Apple the symbol does not exist; any clock that ticks
 * between two process starts serves, and the unit does not matter. */
#include <stdint.h>
#include <time.h>

uint64_t mach_approximate_time(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
