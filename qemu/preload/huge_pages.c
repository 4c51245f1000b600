/* Preloaded into QEMU: leaves out its advice to use huge pages where its guest's memory is a file that comes from another node. */
#define _GNU_SOURCE
#include <linux/magic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Whether the file that is mapped at an address is in a FUSE file system: one that the agent shows while it comes. */
static int comes_yet(uintptr_t address)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps)
        return 0;
    char *line = NULL;
    size_t room = 0;
    int comes = 0;
    while (getline(&line, &room, maps) > 0) {
        uintptr_t from, to;
        int path = 0;
        if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &from, &to, &path) < 2 || address < from || address >= to)
            continue;
        line[strcspn(line, "\n")] = 0;
        struct statfs in;
        comes = line[path] == '/' && statfs(line + path, &in) == 0 && in.f_type == FUSE_SUPER_MAGIC;
        break;
    }
    free(line);
    fclose(maps);
    return comes;
}

/* QEMU asks for huge pages wherever its guest's memory is. Of a file that has not come yet, Linux then reads 4 MiB for each page that is touched
 * (do_sync_mmap_readahead in mm/filemap.c), and the guest waits for what it does not need; copies of a file's pages are never huge. */
__attribute__((visibility("default"))) int madvise(void *address, size_t length, int advice)
{
    if (advice == MADV_HUGEPAGE && comes_yet((uintptr_t)address))
        return 0;
    return syscall(SYS_madvise, address, length, advice);
}
