// Steps the wall clock of a process by CLOCK_STEP seconds once it has run for CLOCK_AFTER milliseconds, by LD_PRELOAD.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real)(clockid_t, struct timespec *);

static long long step(void) {
  static struct timespec first;
  static int told;
  struct timespec now;
  const char *by = getenv("CLOCK_STEP"), *after = getenv("CLOCK_AFTER"), *file = getenv("CLOCK_TOLD");
  if (!by) return 0;
  real(CLOCK_MONOTONIC, &now);
  if (!first.tv_sec) first = now;
  if ((now.tv_sec - first.tv_sec) * 1000 + (now.tv_nsec - first.tv_nsec) / 1000000 < (after ? atol(after) : 0)) return 0;
  if (!told && file) {
    int made = open(file, O_CREAT | O_WRONLY, 0600);
    if (made >= 0) close(made);
    told = 1;
  }
  return atoll(by);
}

int clock_gettime(clockid_t which, struct timespec *found) {
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(which, found);
  if (status == 0 && which == CLOCK_REALTIME) found->tv_sec += step();
  return status;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
  struct timespec now;
  int status = clock_gettime(CLOCK_REALTIME, &now);
  (void)zone;
  found->tv_sec = now.tv_sec;
  found->tv_usec = now.tv_nsec / 1000;
  return status;
}

time_t time(time_t *found) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (found) *found = now.tv_sec;
  return now.tv_sec;
}
