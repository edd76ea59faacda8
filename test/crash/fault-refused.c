/*
 * Calls that would change files below the root without being counted. Nothing makes them now (fault-layer.c says how that is
 * known); one that is made ends the process, so that it does not go unseen.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fault-layer.h"

DECLARE(mmap64); DECLARE(fopen64); DECLARE(ioctl); DECLARE(syscall);

#define REFUSED(type, name, parameters, arguments, fd)   \
  DECLARE(name);                                         \
  EXPORT type name parameters {                          \
    if (path_of(fd)) refuse(#name, path_of(fd));         \
    return REAL(name) arguments;                         \
  }
#define REFUSED_AT(type, name, parameters, arguments, directory, path) \
  DECLARE(name);                                                       \
  EXPORT type name parameters {                                        \
    char full[PATH_MAX];                                               \
    if (inside_at(directory, path, full)) refuse(#name, full);         \
    return REAL(name) arguments;                                       \
  }

REFUSED(ssize_t, copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags),
        (in, from, out, to, length, flags), out)
REFUSED(ssize_t, sendfile, (int out, int in, off_t *from, size_t length), (out, in, from, length), out)
REFUSED(ssize_t, sendfile64, (int out, int in, off64_t *from, size_t length), (out, in, from, length), out)
REFUSED(ssize_t, splice, (int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags),
        (in, from, out, to, length, flags), out)
REFUSED(ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t at, int flags),
        (fd, parts, count, at, flags), fd)
REFUSED(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags),
        (fd, parts, count, at, flags), fd)
REFUSED(int, fallocate, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length), fd)
REFUSED(int, fallocate64, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length), fd)
REFUSED(int, posix_fallocate, (int fd, off_t at, off_t length), (fd, at, length), fd)
REFUSED(int, posix_fallocate64, (int fd, off64_t at, off64_t length), (fd, at, length), fd)
REFUSED(int, sync_file_range, (int fd, off64_t at, off64_t length, unsigned flags), (fd, at, length, flags), fd)
REFUSED(int, dup, (int fd), (fd), fd)
REFUSED(int, dup2, (int fd, int to), (fd, to), fd)
REFUSED(int, dup3, (int fd, int to, int flags), (fd, to, flags), fd)
REFUSED_AT(int, truncate, (const char *path, off_t size), (path, size), AT_FDCWD, path)
REFUSED_AT(int, truncate64, (const char *path, off64_t size), (path, size), AT_FDCWD, path)
REFUSED_AT(int, symlink, (const char *to, const char *path), (to, path), AT_FDCWD, path)
REFUSED_AT(int, symlinkat, (const char *to, int directory, const char *path), (to, directory, path), directory, path)
REFUSED_AT(int, mkstemp, (char *path), (path), AT_FDCWD, path)
REFUSED_AT(int, mkstemp64, (char *path), (path), AT_FDCWD, path)
REFUSED_AT(int, mkostemp, (char *path, int flags), (path, flags), AT_FDCWD, path)
REFUSED_AT(int, mkostemp64, (char *path, int flags), (path, flags), AT_FDCWD, path)
REFUSED_AT(char *, mkdtemp, (char *path), (path), AT_FDCWD, path)

/* libc opens and writes for these by itself. */
EXPORT FILE *fopen64(const char *path, const char *mode) {
  char full[PATH_MAX];
  if (strpbrk(mode, "wa+") && inside(path, full)) refuse("fopen", full);
  return REAL(fopen64)(path, mode);
}
EXPORT FILE *fopen(const char *path, const char *mode) { return fopen64(path, mode); }

EXPORT void *mmap64(void *address, size_t length, int access, int flags, int fd, off64_t offset) {
  if ((access & PROT_WRITE) && (flags & MAP_SHARED) && path_of(fd)) refuse("mmap", path_of(fd));
  return REAL(mmap64)(address, length, access, flags, fd, offset);
}
EXPORT void *mmap(void *address, size_t length, int access, int flags, int fd, off_t offset) {
  return mmap64(address, length, access, flags, fd, offset);
}

EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  if ((request == FICLONE || request == FICLONERANGE) && path_of(fd)) refuse("ioctl", path_of(fd));
  return REAL(ioctl)(fd, request, argument);
}

/* System calls by number, whatever they are on; and libuv's ring for requests of files, which is one the kernel polls. */
EXPORT long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  if (is_laid()) switch (number) {
    case SYS_openat: case SYS_openat2: case SYS_write: case SYS_pwrite64: case SYS_writev: case SYS_pwritev:
    case SYS_pwritev2: case SYS_ftruncate: case SYS_truncate: case SYS_fallocate: case SYS_renameat: case SYS_renameat2:
    case SYS_linkat: case SYS_unlinkat: case SYS_mkdirat: case SYS_symlinkat: case SYS_copy_file_range: case SYS_sendfile:
    case SYS_splice: case SYS_fsync: case SYS_fdatasync:
      refuse("a system call by number", "files");
      break;
    case SYS_io_uring_setup:
      if (((struct io_uring_params *)a[1])->flags & IORING_SETUP_SQPOLL) refuse("io_uring", "files");
  }
  return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
