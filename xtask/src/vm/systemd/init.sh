#!/bin/sh
# The first process of the guest with systemd: makes its root, and hands over. The root is a file system of its own in
# memory: systemd gives units roots of theirs, which cannot be made of the one that a kernel unpacks its archive into.

/bin/busybox mkdir -p /dev /proc /sys /root
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || echo "its kernel does not take the module $module"
done

mount -t tmpfs -o mode=0755,size=90% root /root
tar -x -f /debian.tar -C /root
rm /debian.tar
cp /bin/busybox /root/usr/bin/busybox
cp /programs/tcpclose /root/usr/bin/tcpclose
chmod 644 /unit/* /check.service
cp /unit/tcpclose.service /root/usr/lib/systemd/system/
cp -r /unit /root/root/unit
cp /check.service /root/usr/lib/systemd/system/
cp /check.sh /root/root/check.sh

# What would wait for somebody, or for a disk.
for unit in serial-getty@ttyS0 getty@tty1 systemd-firstboot systemd-networkd systemd-resolved; do
    ln -sf /dev/null "/root/etc/systemd/system/$unit.service"
done
for timer in apt-daily apt-daily-upgrade dpkg-db-backup fstrim e2scrub_all systemd-tmpfiles-clean; do
    ln -sf /dev/null "/root/etc/systemd/system/$timer.timer"
done
mkdir -p /root/etc/systemd/system/multi-user.target.wants
for unit in tcpclose check; do
    ln -sf "/usr/lib/systemd/system/$unit.service" /root/etc/systemd/system/multi-user.target.wants/
done
ln -sf /usr/lib/systemd/system/multi-user.target /root/etc/systemd/system/default.target
tr -d - </proc/sys/kernel/random/uuid >/root/etc/machine-id
echo guest >/root/etc/hostname
echo 'u tcpclose - "tcpclose agent"' >/root/usr/lib/sysusers.d/tcpclose.conf
chroot /root /usr/bin/systemd-sysusers

umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /lib/systemd/systemd --log-target=console
