/* What the parts of the layer share. */
#include <dlfcn.h>
#include <limits.h>

#define EXPORT __attribute__((visibility("default")))

/* The function of libc behind one of ours. */
static inline void *find(void **slot, const char *name) {
  if (!*slot) *slot = dlsym(RTLD_NEXT, name);
  return *slot;
}
#define REAL(name) ((__typeof__(&name))find(&real_##name, #name))
#define DECLARE(name) static void *real_##name

/* Whether there is a layer in this process: the test gave it a root. */
int is_laid(void);

/* The absolute path when it lies below the root, else 0; in the second form relative to an open directory. */
int inside(const char *path, char out[PATH_MAX]);
int inside_at(int directory, const char *path, char out[PATH_MAX]);

/* The path of a descriptor of a file or directory below the root, else NULL. */
const char *path_of(int fd);

/* Ends the process: what it is about to do would be neither counted nor taken back. */
void refuse(const char *call, const char *path) __attribute__((noreturn));
