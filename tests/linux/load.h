// The write load of power_loss.rs.
#ifndef LOAD_H
#define LOAD_H

// Mounts the ext4 file system of /dev/vda on /mnt and writes to it for ever, step by step; returns only if that fails.
void write_load(void);

#endif
