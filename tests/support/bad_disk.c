/* A disk that fails to read: loaded in front of libc, it answers EIO to every EIO_EVERY-th read of the file EIO_FILE, EIO_TIMES times at most,
   and turns a bit of each other read if EIO_FLIP is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long reads, failures;

static int is_bad(int descriptor) {
  char link[64], path[4096];
  const char *bad = getenv("EIO_FILE");
  if (!bad) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strcmp(path, bad) == 0;
}

static int fails(int descriptor) {
  if (!is_bad(descriptor) || ++reads % atol(getenv("EIO_EVERY")) || failures >= atol(getenv("EIO_TIMES"))) return 0;
  failures++;
  errno = EIO;
  return 1;
}

static ssize_t flipped(int descriptor, void *buffer, ssize_t length) {
  if (getenv("EIO_FLIP") && length >= 4096 && is_bad(descriptor)) ((unsigned char *)buffer)[8 + reads++ % 4000] ^= 0x55;
  return length;
}

#define READ(name, offset_type)                                                                  \
  ssize_t name(int descriptor, void *buffer, size_t size, offset_type offset) {                  \
    static ssize_t (*real)(int, void *, size_t, offset_type);                                    \
    if (!real) real = dlsym(RTLD_NEXT, #name);                                                   \
    return fails(descriptor) ? -1 : flipped(descriptor, buffer, real(descriptor, buffer, size, offset)); \
  }

READ(pread, off_t)
READ(pread64, off64_t)

ssize_t read(int descriptor, void *buffer, size_t size) {
  static ssize_t (*real)(int, void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "read");
  return fails(descriptor) ? -1 : flipped(descriptor, buffer, real(descriptor, buffer, size));
}
