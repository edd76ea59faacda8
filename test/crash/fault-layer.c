/*
 * A layer between a process and the files below one directory, loaded with LD_PRELOAD. It
 *
 *   - counts steps: every call that changes a file or a directory entry or syncs one, and every commit sent to PostgreSQL,
 *     and kills the process before or after a step of the test's choice;
 *   - keeps what is needed to take back everything that was not synced, as a power failure may (power.ts does that);
 *   - makes chosen calls fail.
 *
 * Syncs are only recorded, not done: the kernel outlives the process, and the test decides what was lost.
 *
 * FAULT_ROOT  the directory, an absolute path without symbolic links
 * FAULT_AREA  a directory of the test on the same file system: `control` (below), `log` (records), `saved/` (removed files)
 *
 * One lock around everything: a call of any thread is one step, and records are in the order of the calls.
 *
 * What the server calls, as `strace -f -y` of whole lives on both databases shows it (Node 26, SQLite, two workers too): open,
 * openat, write, pwrite64, pwritev, fsync, fdatasync, ftruncate, rename, link, unlink and mkdir, of files below the root; chmod
 * and fchown, which change neither content nor names; read-only mappings of the database, and writable ones of its shared
 * memory, which is no file to a crash. libuv has a ring of requests (io_uring) for epoll only. Calls that nothing makes now and
 * that would pass by unseen end the process with a message when they touch a file below the root: fault-refused.c.
 * layer.test.ts takes back whole lives by the records, which shows that there is nothing else.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fault-layer.h"

#define RULES 4
#define FDS 65536

enum { OP_OPEN = 1, OP_WRITE = 2, OP_SYNC = 4, OP_TRUNCATE = 8, OP_ENTRY = 16, OP_READ = 32 };

/* Shared with the test, which reads and writes the file `control`. Little-endian, offsets as in faults.ts. */
struct rule {
  uint32_t ops;       /* which calls */
  int32_t error;      /* errno they fail with; 0: the rule is off */
  int32_t remaining;  /* how often; negative: for ever */
  uint32_t hits;      /* how often they did */
  char pattern[112];  /* part of the path; empty: every path */
};
struct control {
  uint64_t steps;
  uint64_t kill_at;    /* 0: never */
  uint32_t kill_after; /* the step is done before the process dies */
  uint32_t unused[11];
  struct rule rules[RULES];
};

enum { R_WRITE = 1, R_SYNC, R_DIRSYNC, R_CREATE, R_RENAME, R_UNLINK, R_MKDIR, R_RMDIR, R_LOST };
struct record {
  uint32_t type, path_length, other_length;
  uint32_t saved; /* of an entry: number in `saved/`; of a write: how many bytes it changes */
  uint64_t inode, offset, length, size;
};

static struct control *control;
static char root[PATH_MAX], area[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static uint32_t saved_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *paths[FDS]; /* of the descriptors of files below the root */

DECLARE(open); DECLARE(open64); DECLARE(openat); DECLARE(close); DECLARE(write); DECLARE(pwrite64);
DECLARE(writev); DECLARE(pwritev64); DECLARE(fsync); DECLARE(fdatasync); DECLARE(ftruncate64); DECLARE(rename);
DECLARE(link); DECLARE(unlink); DECLARE(mkdir); DECLARE(rmdir); DECLARE(read); DECLARE(pread64);
DECLARE(linkat); DECLARE(unlinkat); DECLARE(mkdirat); DECLARE(renameat2); DECLARE(remove);

__attribute__((constructor)) static void begin(void) {
  const char *where = getenv("FAULT_ROOT"), *own = getenv("FAULT_AREA");
  if (!where || !own) return;
  snprintf(root, sizeof root, "%s", where);
  snprintf(area, sizeof area, "%s", own);
  root_length = strlen(root);
  char path[PATH_MAX + 16];
  snprintf(path, sizeof path, "%s/control", area);
  int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) abort();
  void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  REAL(close)(fd);
  if (mapped == MAP_FAILED) abort();
  snprintf(path, sizeof path, "%s/log", area);
  log_fd = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log_fd < 0) abort();
  control = mapped;
}

/* -- which files ---------------------------------------------------------------------------------------------------- */

static int ends_with(const char *path, const char *end) {
  size_t a = strlen(path), b = strlen(end);
  return a >= b && strcmp(path + a - b, end) == 0;
}

int is_laid(void) { return control != NULL; }

/* SQLite's shared memory is no file to this, only a mapping. */
int inside(const char *path, char out[PATH_MAX]) {
  if (!control || !path) return 0;
  if (path[0] == '/') snprintf(out, PATH_MAX, "%s", path);
  else {
    if (!getcwd(out, PATH_MAX)) return 0;
    size_t used = strlen(out);
    snprintf(out + used, PATH_MAX - used, "/%s", path);
  }
  for (size_t end = strlen(out); end > 1 && out[end - 1] == '/'; end--) out[end - 1] = 0;
  if (strncmp(out, root, root_length) != 0) return 0;
  if (out[root_length] != '/' && out[root_length] != 0) return 0;
  return !ends_with(out, "-shm") && !ends_with(out, "/berth.lock");
}

int inside_at(int directory, const char *path, char out[PATH_MAX]) {
  if (!control || !path) return 0;
  if (path[0] == '/' || directory == AT_FDCWD) return inside(path, out);
  char own[64], joined[2 * PATH_MAX];
  snprintf(own, sizeof own, "/proc/self/fd/%d", directory);
  ssize_t length = readlink(own, joined, PATH_MAX);
  if (length < 0) return 0;
  snprintf(joined + length, PATH_MAX, "/%s", path);
  return inside(joined, out);
}

void refuse(const char *call, const char *path) {
  fprintf(stderr, "fault-layer.c does not know %s on %s\n", call, path);
  abort();
}

const char *path_of(int fd) {
  if (!control || fd < 0 || fd >= FDS || !paths[fd]) return NULL;
  struct stat64 stats; /* libc closes some descriptors itself, and a socket may have the number now */
  if (fstat64(fd, &stats) != 0 || !(S_ISREG(stats.st_mode) || S_ISDIR(stats.st_mode))) return NULL;
  return paths[fd];
}

/* -- steps and faults ----------------------------------------------------------------------------------------------- */

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int is_quiet(const char *path) { return strstr(path + root_length, "/audit/") != NULL; }

static void before_step(const char *path) {
  if (path && is_quiet(path)) return;
  control->steps++;
  if (control->kill_at == control->steps && !control->kill_after) die();
}

static void after_step(const char *path) {
  if (path && is_quiet(path)) return;
  if (control->kill_at && control->kill_at == control->steps && control->kill_after) die();
}

/* Whether this call is to fail; sets errno. */
static int fails(uint32_t op, const char *path) {
  for (int i = 0; i < RULES; i++) {
    struct rule *rule = &control->rules[i];
    if (!rule->error || !(rule->ops & op) || rule->remaining == 0) continue;
    if (rule->pattern[0] && !strstr(path, rule->pattern)) continue;
    if (rule->remaining > 0) rule->remaining--;
    rule->hits++;
    errno = rule->error;
    return 1;
  }
  return 0;
}

/* -- records -------------------------------------------------------------------------------------------------------- */

static void put(const void *bytes, size_t length) {
  const char *at = bytes;
  while (length > 0) {
    ssize_t written = REAL(write)(log_fd, at, length);
    if (written < 0) abort();
    at += written;
    length -= written;
  }
}

static void note(struct record record, const char *path, const char *other) {
  record.path_length = path ? strlen(path) : 0;
  record.other_length = other ? strlen(other) : 0;
  put(&record, sizeof record);
  put(path, record.path_length);
  put(other, record.other_length);
}

/* What is in the file now from `offset` on, `length` bytes at most, before it is overwritten or cut. */
static void note_content(int fd, const char *path, uint64_t offset, uint64_t length) {
  struct stat64 stats;
  if (fstat64(fd, &stats) != 0 || !S_ISREG(stats.st_mode)) return;
  uint64_t size = stats.st_size;
  uint64_t kept = offset >= size ? 0 : size - offset < length ? size - offset : length;
  char *bytes = malloc(kept + 1);
  char own[64];
  snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
  uint64_t done = 0;
  if (kept > 0) { /* the descriptor may be for writing only */
    int reading = REAL(open)(own, O_RDONLY | O_CLOEXEC);
    while (reading >= 0 && done < kept) {
      ssize_t got = REAL(pread64)(reading, bytes + done, kept - done, offset + done);
      if (got <= 0) break;
      done += got;
    }
    if (reading >= 0) REAL(close)(reading);
  }
  struct record record = {.type = R_WRITE, .inode = stats.st_ino, .offset = offset, .length = done, .size = size};
  record.saved = length > UINT32_MAX ? UINT32_MAX : length;
  note(record, path, NULL);
  put(bytes, done);
  free(bytes);
}

/* WHY also one that failed: the kernel takes the pages for clean then, and another sync would not write them. */
static void note_sync(int fd, const char *path, int failed) {
  struct stat64 stats;
  if (fstat64(fd, &stats) != 0 || (failed && S_ISDIR(stats.st_mode))) return;
  struct record record = {.type = S_ISDIR(stats.st_mode) ? R_DIRSYNC : failed ? R_LOST : R_SYNC, .inode = stats.st_ino};
  note(record, path, NULL);
}

/* Keeps a file that is about to lose its name; 0 when there is none. */
static uint32_t save(const char *path) {
  struct stat64 stats;
  if (lstat64(path, &stats) != 0 || !S_ISREG(stats.st_mode)) return 0;
  char name[PATH_MAX + 32];
  snprintf(name, sizeof name, "%s/saved/%u-%u", area, (unsigned)getpid(), ++saved_count);
  if (REAL(link)(path, name) != 0) abort();
  return saved_count;
}

static void note_entry(uint32_t type, const char *path, const char *other, uint32_t saved) {
  struct record record = {.type = type, .saved = saved, .inode = (uint64_t)getpid()}; /* they name the saved file */
  note(record, path, other);
}

/* -- the calls ------------------------------------------------------------------------------------------------------ */

static int open_inside(const char *path, int flags, mode_t mode) {
  struct stat64 stats;
  int writes = (flags & O_ACCMODE) != O_RDONLY;
  if ((flags & __O_TMPFILE) == __O_TMPFILE) refuse("O_TMPFILE", path);
  if ((writes || (flags & O_CREAT)) && fails(OP_OPEN, path)) return -1;
  int exists = stat64(path, &stats) == 0;
  if (!exists && !(flags & O_CREAT)) return REAL(open)(path, flags, mode);
  int creates = !exists, cuts = exists && (flags & O_TRUNC) && !(flags & O_EXCL) && stats.st_size > 0;
  if (creates || cuts) before_step(path);
  if (creates && fails(OP_ENTRY, path)) return -1;
  if (cuts) {
    int reading = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (reading >= 0) {
      note_content(reading, path, 0, UINT64_MAX);
      REAL(close)(reading);
    }
  }
  int fd = REAL(open)(path, flags, mode);
  if (fd >= 0 && creates) note_entry(R_CREATE, path, NULL, 0);
  if (fd >= 0 && fd < FDS) {
    free(paths[fd]);
    paths[fd] = strdup(path);
  }
  if (creates || cuts) after_step(path);
  return fd;
}

static int open_any(int directory, const char *path, int flags, mode_t mode) {
  char full[PATH_MAX];
  if (!inside_at(directory, path, full)) return -2;
  pthread_mutex_lock(&lock);
  int fd = open_inside(full, flags, mode);
  int error = errno;
  pthread_mutex_unlock(&lock);
  errno = error;
  return fd;
}

#define MODE(flags)                                 \
  mode_t mode = 0;                                  \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {          \
    va_list list;                                   \
    va_start(list, flags);                          \
    mode = va_arg(list, mode_t);                    \
    va_end(list);                                   \
  }

/* WHY forgotten: what was closed without `close` left its path behind, and another file has the number now. */
static int elsewhere(int fd) {
  if (fd >= 0 && fd < FDS && paths[fd]) {
    pthread_mutex_lock(&lock);
    free(paths[fd]);
    paths[fd] = NULL;
    pthread_mutex_unlock(&lock);
  }
  return fd;
}

EXPORT int open(const char *path, int flags, ...) {
  MODE(flags)
  int fd = open_any(AT_FDCWD, path, flags, mode);
  return fd == -2 ? elsewhere(REAL(open)(path, flags, mode)) : fd;
}

EXPORT int open64(const char *path, int flags, ...) {
  MODE(flags)
  int fd = open_any(AT_FDCWD, path, flags, mode);
  return fd == -2 ? elsewhere(REAL(open64)(path, flags, mode)) : fd;
}

EXPORT int openat(int directory, const char *path, int flags, ...) {
  MODE(flags)
  int fd = open_any(directory, path, flags, mode);
  return fd == -2 ? elsewhere(REAL(openat)(directory, path, flags, mode)) : fd;
}

EXPORT int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

EXPORT int openat64(int directory, const char *path, int flags, ...) {
  MODE(flags)
  return openat(directory, path, flags, mode);
}

EXPORT int close(int fd) {
  if (path_of(fd)) {
    pthread_mutex_lock(&lock);
    free(paths[fd]);
    paths[fd] = NULL;
    int result = REAL(close)(fd);
    pthread_mutex_unlock(&lock);
    return result;
  }
  return REAL(close)(fd);
}

/* A commit on its way to PostgreSQL, which listens on a Unix socket. */
static int is_commit(int fd, const struct iovec *parts, int count) {
  if (!control) return 0;
  int found = 0;
  for (int i = 0; i < count && !found; i++)
    found = memmem(parts[i].iov_base, parts[i].iov_len, "commit\0", 7) != NULL;
  if (!found) return 0;
  struct sockaddr_storage peer;
  socklen_t length = sizeof peer;
  return getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && peer.ss_family == AF_UNIX;
}

#define COMMITTING(fd, parts, count, call)         \
  if (is_commit(fd, parts, count)) {               \
    pthread_mutex_lock(&lock);                     \
    before_step(NULL);                             \
    ssize_t result = call;                         \
    int error = errno;                             \
    after_step(NULL);                              \
    pthread_mutex_unlock(&lock);                   \
    errno = error;                                 \
    return result;                                 \
  }

/* Writes at `offset`, or where the descriptor is when that is negative. */
static ssize_t write_inside(int fd, const struct iovec *parts, int count, off64_t offset) {
  pthread_mutex_lock(&lock);
  const char *path = paths[fd];
  ssize_t result = -1;
  before_step(path);
  if (!fails(OP_WRITE, path)) {
    size_t length = 0;
    for (int i = 0; i < count; i++) length += parts[i].iov_len;
    off64_t at = offset;
    if (offset < 0) at = fcntl(fd, F_GETFL) & O_APPEND ? lseek64(fd, 0, SEEK_END) : lseek64(fd, 0, SEEK_CUR);
    note_content(fd, path, at, length);
    result = offset < 0 ? REAL(writev)(fd, parts, count) : REAL(pwritev64)(fd, parts, count, offset);
  }
  int error = errno;
  after_step(path);
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

EXPORT ssize_t write(int fd, const void *bytes, size_t length) {
  struct iovec part = {(void *)bytes, length};
  if (path_of(fd)) return write_inside(fd, &part, 1, -1);
  COMMITTING(fd, &part, 1, REAL(write)(fd, bytes, length))
  return REAL(write)(fd, bytes, length);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (path_of(fd)) return write_inside(fd, parts, count, -1);
  COMMITTING(fd, parts, count, REAL(writev)(fd, parts, count))
  return REAL(writev)(fd, parts, count);
}

EXPORT ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
  struct iovec part = {(void *)bytes, length};
  return path_of(fd) ? write_inside(fd, &part, 1, offset) : REAL(pwrite64)(fd, bytes, length, offset);
}

EXPORT ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
  return pwrite64(fd, bytes, length, offset);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
  return path_of(fd) ? write_inside(fd, parts, count, offset) : REAL(pwritev64)(fd, parts, count, offset);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  return pwritev64(fd, parts, count, offset);
}

/* Reading is no step, but it can be made to fail. */
static int read_fails(int fd) {
  const char *path = path_of(fd);
  return path && fails(OP_READ, path);
}

EXPORT ssize_t read(int fd, void *bytes, size_t length) {
  return read_fails(fd) ? -1 : REAL(read)(fd, bytes, length);
}

EXPORT ssize_t pread64(int fd, void *bytes, size_t length, off64_t offset) {
  return read_fails(fd) ? -1 : REAL(pread64)(fd, bytes, length, offset);
}

EXPORT ssize_t pread(int fd, void *bytes, size_t length, off_t offset) {
  return pread64(fd, bytes, length, offset);
}

static int sync_inside(int fd) {
  pthread_mutex_lock(&lock);
  const char *path = paths[fd];
  before_step(path);
  int result = fails(OP_SYNC, path) ? -1 : 0;
  int error = errno;
  note_sync(fd, path, result != 0);
  after_step(path);
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

EXPORT int fsync(int fd) { return path_of(fd) ? sync_inside(fd) : REAL(fsync)(fd); }
EXPORT int fdatasync(int fd) { return path_of(fd) ? sync_inside(fd) : REAL(fdatasync)(fd); }

EXPORT int ftruncate64(int fd, off64_t size) {
  if (!path_of(fd)) return REAL(ftruncate64)(fd, size);
  pthread_mutex_lock(&lock);
  const char *path = paths[fd];
  before_step(path);
  int result = -1;
  if (!fails(OP_TRUNCATE, path)) {
    note_content(fd, path, size, UINT64_MAX);
    result = REAL(ftruncate64)(fd, size);
  }
  int error = errno;
  after_step(path);
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

EXPORT int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

/* One change of directory entries: `save` what loses its name, do it, note it. */
#define ENTRY(path, removes, type, first, second, call)       \
  pthread_mutex_lock(&lock);                                  \
  before_step(path);                                          \
  int result = -1;                                            \
  if (!fails(OP_ENTRY, path)) {                               \
    uint32_t saved = removes;           \
    result = call;                                            \
    if (result == 0) note_entry(type, first, second, saved);  \
  }                                                           \
  int error = errno;                                          \
  after_step(path);                                           \
  pthread_mutex_unlock(&lock);                                \
  errno = error;                                              \
  return result;

EXPORT int rename(const char *from, const char *to) {
  char old[PATH_MAX], new[PATH_MAX];
  int leaves = inside(from, old), enters = inside(to, new);
  if (leaves != enters) refuse("rename", leaves ? old : new);
  if (!leaves) return REAL(rename)(from, to);
  ENTRY(new, save(new), R_RENAME, old, new, REAL(rename)(from, to))
}

EXPORT int link(const char *from, const char *to) {
  char old[PATH_MAX], new[PATH_MAX];
  if (!inside(to, new)) return REAL(link)(from, to);
  if (!inside(from, old)) refuse("link", new);
  ENTRY(new, 0, R_CREATE, new, old, REAL(link)(from, to))
}

EXPORT int unlink(const char *path) {
  char full[PATH_MAX];
  if (!inside(path, full)) return REAL(unlink)(path);
  ENTRY(full, save(full), R_UNLINK, full, NULL, REAL(unlink)(path))
}

EXPORT int mkdir(const char *path, mode_t mode) {
  char full[PATH_MAX];
  struct stat64 stats;
  if (!inside(path, full) || stat64(full, &stats) == 0) return REAL(mkdir)(path, mode);
  ENTRY(full, 0, R_MKDIR, full, NULL, REAL(mkdir)(path, mode))
}

EXPORT int rmdir(const char *path) {
  char full[PATH_MAX];
  if (!inside(path, full)) return REAL(rmdir)(path);
  ENTRY(full, 0, R_RMDIR, full, NULL, REAL(rmdir)(path))
}

/* The same relative to directories. */

EXPORT int unlinkat(int directory, const char *path, int flags) {
  char full[PATH_MAX];
  if (!inside_at(directory, path, full)) return REAL(unlinkat)(directory, path, flags);
  return flags & AT_REMOVEDIR ? rmdir(full) : unlink(full);
}

EXPORT int remove(const char *path) {
  char full[PATH_MAX];
  struct stat64 stats;
  if (!inside(path, full)) return REAL(remove)(path);
  return lstat64(full, &stats) == 0 && S_ISDIR(stats.st_mode) ? rmdir(full) : unlink(full);
}

EXPORT int mkdirat(int directory, const char *path, mode_t mode) {
  char full[PATH_MAX];
  return inside_at(directory, path, full) ? mkdir(full, mode) : REAL(mkdirat)(directory, path, mode);
}

EXPORT int linkat(int first, const char *from, int second, const char *to, int flags) {
  char old[PATH_MAX], new[PATH_MAX];
  if (!inside_at(second, to, new)) return REAL(linkat)(first, from, second, to, flags);
  if (flags != 0 || !inside_at(first, from, old)) refuse("linkat", new);
  return link(old, new);
}

EXPORT int renameat2(int first, const char *from, int second, const char *to, unsigned flags) {
  char old[PATH_MAX], new[PATH_MAX];
  int leaves = inside_at(first, from, old), enters = inside_at(second, to, new);
  if (leaves != enters || (leaves && flags != 0)) refuse("renameat2", leaves ? old : new);
  return leaves ? rename(old, new) : REAL(renameat2)(first, from, second, to, flags);
}

EXPORT int renameat(int first, const char *from, int second, const char *to) {
  return renameat2(first, from, second, to, 0);
}
