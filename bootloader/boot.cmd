# The bootloader's side of the boot state on U-Boot. Compiled into boot.scr behind a few lines of settings
# (bootloader/uboot-script.ts); bootloader/machine.ts says what it decides, docs/architecture.md what it hands to the kernel.
#
# Only commands that every U-Boot with a shell has: no setexpr (x86 builds lack it), so numbers go up and down by looking
# for their neighbour in a list, and addresses are made by writing digits behind ${bs_mem}. What is read from the disk
# is data: env import takes only the variables named here.
#
# Settings: bs_start (first sector of the partition bootstate), bs_state0, bs_state1, bs_reason (sectors of the three
# blocks), bs_mem (4 KiB of memory that nothing is loaded to: a hex address without its last three digits), bs_out (the same
# for what stands behind it: env export -c clears as many bytes as the board's own environment has), bs_boot (starts the loaded kernel), bs_wait10 and bs_wait30, bs_reset. From distro boot or bootflow: devtype,
# devnum.

# --- helpers, as variables for run --------------------------------------------------------------------------------------

# Reads the copy at sector ${bs_sector} to ${bs_at}00. Sets bs_good to 1 and bs_primary, bs_trial, bs_left, bs_spare when
# it counts. A copy is an environment with a flag byte behind its checksum; a U-Boot that was built without flags wants it
# without, so the pieces are put together anew for it.
setenv bs_read '
setenv bs_good 0
setenv BOOT_ORDER
setenv BOOT_A_LEFT
setenv BOOT_B_LEFT
setenv BISTABLE_PRIMARY
setenv BISTABLE_GENERATION
if ${devtype} read ${bs_at}00 ${bs_sector} 1; then
  if test "${bs_flags}" = 1; then
    if env import -c ${bs_at}00 200 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BISTABLE_PRIMARY BISTABLE_GENERATION; then setenv bs_good 1; fi
  else
    cp.b ${bs_at}00 ${bs_mem}400 4
    cp.b ${bs_at}05 ${bs_mem}404 1fb
    if env import -c ${bs_mem}400 1ff BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BISTABLE_PRIMARY BISTABLE_GENERATION; then setenv bs_good 1; fi
  fi
fi
if test "${bs_good}" = 1; then run bs_parse; fi
'

# From the variables of a copy; bs_good back to 0 when they are no boot state.
setenv bs_parse '
setenv bs_good 0
setenv bs_primary -
setenv bs_first -
setenv bs_second -
setenv bs_spare 0
setenv bs_trial -
setenv bs_left 0
if test "${BISTABLE_PRIMARY}" = A; then setenv bs_primary a; fi
if test "${BISTABLE_PRIMARY}" = B; then setenv bs_primary b; fi
if test "${BOOT_ORDER}" = A; then setenv bs_first a; fi
if test "${BOOT_ORDER}" = B; then setenv bs_first b; fi
if test "${BOOT_ORDER}" = "A B"; then setenv bs_first a; setenv bs_second b; fi
if test "${BOOT_ORDER}" = "B A"; then setenv bs_first b; setenv bs_second a; fi
if test "${bs_primary}" != - && test "${bs_first}" != -; then
  if test "${bs_first}" = "${bs_primary}"; then
    setenv bs_good 1
    if test "${bs_second}" != -; then setenv bs_spare 1; fi
  else
    setenv bs_trial ${bs_first}
    if test "${bs_trial}" = a; then setenv bs_count "${BOOT_A_LEFT}"; else setenv bs_count "${BOOT_B_LEFT}"; fi
    for bs_digit in 0 1 2 3 4 5 6 7 8 9; do
      if test "${bs_count}" = "${bs_digit}"; then setenv bs_good 1; setenv bs_left ${bs_digit}; fi
    done
  fi
fi
'

# Writes one try less into the copy that does not count, its flag one above the other one (255 is followed by 0), and reads it
# back. Sets bs_written to 1, and bs_left, or bs_written to 0.
setenv bs_count_down '
setenv bs_written 0
setenv bs_below 0
for bs_digit in 0 1 2 3 4 5 6 7 8 9; do
  if test "${bs_left}" = "${bs_digit}"; then setenv bs_less ${bs_below}; fi
  setenv bs_below ${bs_digit}
done
setenv bs_top
setenv bs_above 0
for bs_digit in f e d c b a 9 8 7 6 5 4 3 2 1 0; do
  if itest.b *${bs_at}04 >= 0x${bs_digit}0; then
    if test -z "${bs_top}"; then setenv bs_top ${bs_digit}; setenv bs_next ${bs_above}0; fi
  fi
  setenv bs_above ${bs_digit}
done
for bs_digit in f e d c b a 9 8 7 6 5 4 3 2 1 0; do
  if itest.b *${bs_at}04 == 0x${bs_top}${bs_digit}; then setenv bs_flag ${bs_next}; fi
  setenv bs_next ${bs_top}${bs_digit}
done
if test "${bs_trial}" = a; then setenv BOOT_A_LEFT ${bs_less}; else setenv BOOT_B_LEFT ${bs_less}; fi
if test "${bs_flags}" = 1; then
  env export -c -s 200 ${bs_out}000 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BISTABLE_PRIMARY BISTABLE_GENERATION
  cp.b ${bs_out}000 ${bs_mem}800 200
else
  env export -c -s 1ff ${bs_out}000 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BISTABLE_PRIMARY BISTABLE_GENERATION
  cp.b ${bs_out}000 ${bs_mem}800 4
  cp.b ${bs_out}004 ${bs_mem}805 1fb
fi
mw.b ${bs_mem}804 0x${bs_flag}
if ${devtype} write ${bs_mem}800 ${bs_other} 1; then
  mw.b ${bs_mem}a00 0 200
  if ${devtype} read ${bs_mem}a00 ${bs_other} 1; then
    if cmp.b ${bs_mem}800 ${bs_mem}a00 200; then
      setenv bs_written 1
      setenv bs_left ${bs_less}
    fi
  fi
fi
'

# Starts that no agent has answered: sets bs_starts_a, bs_starts_b, bs_up, and bs_broken_a, bs_broken_b (1 from six starts
# on). The block is text with rs_head first, so its digits stand at fixed places; what they make must be the whole word.
setenv bs_read_starts '
setenv rs_head
setenv rs_tail
setenv rs_failure
setenv bs_starts_a 0
setenv bs_starts_b 0
setenv bs_up -
setenv bs_reason_good 0
if test "${bs_usable}" = 1; then
  if ${devtype} read ${bs_mem}c00 ${bs_reason} 1; then
    if itest.l *${bs_mem}c00 == 0x52472023; then
      setenv bs_reason_good 1
      env import -t ${bs_mem}c00 200 rs_head rs_tail rs_failure
    fi
  fi
fi
setenv bs_word -
for bs_digit in 0 1 2 3 4 5 6 7 8 9; do
  if itest.b *${bs_mem}c22 == 0x3${bs_digit}; then setenv bs_starts_a ${bs_digit}; fi
  if itest.b *${bs_mem}c24 == 0x3${bs_digit}; then setenv bs_starts_b ${bs_digit}; fi
done
if itest.b *${bs_mem}c26 == 0x61; then setenv bs_up a; fi
if itest.b *${bs_mem}c26 == 0x62; then setenv bs_up b; fi
if test "${rs_head}" != "a${bs_starts_a}b${bs_starts_b}u${bs_up}" || test "${rs_head}" != "${rs_tail}"; then
  setenv bs_starts_a 0
  setenv bs_starts_b 0
  setenv bs_up -
fi
setenv bs_broken_a 0
setenv bs_broken_b 0
for bs_digit in 6 7 8 9; do
  if test "${bs_starts_a}" = "${bs_digit}"; then setenv bs_broken_a 1; fi
  if test "${bs_starts_b}" = "${bs_digit}"; then setenv bs_broken_b 1; fi
done
'

# One point more for bs_slot; a write that fails changes nothing here.
setenv bs_count_start '
if test "${bs_slot}" = a; then setenv bs_points ${bs_starts_a}; else setenv bs_points ${bs_starts_b}; fi
setenv bs_above 9
for bs_digit in 9 8 7 6 5 4 3 2 1 0; do
  if test "${bs_points}" = "${bs_digit}"; then setenv bs_more ${bs_above}; fi
  setenv bs_above ${bs_digit}
done
if test "${bs_slot}" = a; then setenv bs_starts_a ${bs_more}; else setenv bs_starts_b ${bs_more}; fi
setenv rs_head a${bs_starts_a}b${bs_starts_b}u${bs_up}
setenv rs_tail ${rs_head}
if test "${bs_reason_good}" = 1; then
  mw.b ${bs_mem}e00 0x23 200
  cp.b ${bs_mem}c00 ${bs_mem}e00 19
  env export -t ${bs_mem}e19 rs_head
  env export -t ${bs_mem}e28 rs_failure rs_tail
  ${devtype} write ${bs_mem}e00 ${bs_reason} 1
fi
'

# Loads bs_slot: sets bs_loaded to 1 when kernel and initramfs are in memory. A device tree in the boot image goes before
# the one that U-Boot itself runs with.
setenv bs_load '
setenv bs_loaded 0
setenv bistable_release
setenv bistable_args
setenv bs_part
setenv bs_tree ${fdtcontroladdr}
if part number ${devtype} ${devnum} boot-${bs_slot} bs_part; then
  if load ${devtype} ${devnum}:${bs_part} ${bs_out}000 boot.cfg 1000; then
    env import -t ${bs_out}000 ${filesize} bistable_release bistable_args
    if test -n "${bistable_release}" && test -n "${bistable_args}"; then
      if test -n "${fdt_addr_r}"; then
        if test -e ${devtype} ${devnum}:${bs_part} board.dtb; then
          if load ${devtype} ${devnum}:${bs_part} ${fdt_addr_r} board.dtb; then setenv bs_tree ${fdt_addr_r}; fi
        fi
      fi
      if load ${devtype} ${devnum}:${bs_part} ${kernel_addr_r} vmlinuz; then
        if load ${devtype} ${devnum}:${bs_part} ${ramdisk_addr_r} initrd.img; then
          setenv bs_size ${filesize}
          setenv bs_loaded 1
        fi
      fi
    fi
  fi
fi
'

# Starts bs_slot with bs_kind and bs_why. Comes back only when that failed (bs_done is 0).
setenv bs_go '
run bs_load
if test "${bs_loaded}" = 1; then
  if test "${bs_kind}" != try; then
    if test "${bs_slot}${bs_broken_a}" = a1 || test "${bs_slot}${bs_broken_b}" = b1; then
      echo "bistable: waiting 10 seconds"
      run bs_wait10
    fi
  fi
  run bs_count_start
  setenv bootargs "panic=5 ${bistable_args} bistable.slot=${bs_slot} bistable.release=${bistable_release} bistable.boot=${bs_kind} bistable.left=${bs_left} bistable.why=${bs_why} bistable.loader=uboot"
  echo
  echo "bistable: boot slot=${bs_slot} boot=${bs_kind} left=${bs_left} why=${bs_why} release=${bistable_release}"
  if run bs_boot; then setenv bs_done 1; fi
else
  echo "bistable: slot=${bs_slot} cannot be loaded"
fi
'

# --- the decision -------------------------------------------------------------------------------------------------------

# The settings belong to this disk only if its partition stands where they say.
setenv bs_found
setenv bs_usable 0
${devtype} dev ${devnum}
if part start ${devtype} ${devnum} bootstate bs_found; then
  if test "${bs_found}" = "${bs_start}"; then setenv bs_usable 1; fi
fi

# Does this U-Boot put a flag byte behind the checksum? What it exports shows it: a flag is 1, a name starts with a letter.
setenv bs_flags 0
setenv bs_probe x
env export -c -s 20 ${bs_out}000 bs_probe
if itest.b *${bs_out}004 == 1; then setenv bs_flags 1; fi

setenv bs_good0 0
setenv bs_good1 0
if test "${bs_usable}" = 1; then
  setenv bs_sector ${bs_state0}
  setenv bs_at ${bs_mem}0
  run bs_read
  setenv bs_good0 ${bs_good}
  setenv bs_sector ${bs_state1}
  setenv bs_at ${bs_mem}2
  run bs_read
  setenv bs_good1 ${bs_good}
fi

# Of two good copies the one with the higher flag; 0 follows 255.
setenv bs_newer 0
if test "${bs_good0}${bs_good1}" = 01; then setenv bs_newer 1; fi
if test "${bs_good0}${bs_good1}" = 11; then
  if itest.b *${bs_mem}204 > *${bs_mem}004; then setenv bs_newer 1; fi
  if itest.b *${bs_mem}204 == 0 && itest.b *${bs_mem}004 == 0xff; then setenv bs_newer 1; fi
  if itest.b *${bs_mem}004 == 0 && itest.b *${bs_mem}204 == 0xff; then setenv bs_newer 0; fi
fi
setenv bs_good 0
if test "${bs_good0}${bs_good1}" != 00; then
  if test "${bs_newer}" = 0; then
    setenv bs_sector ${bs_state0}
    setenv bs_at ${bs_mem}0
    setenv bs_other ${bs_state1}
  else
    setenv bs_sector ${bs_state1}
    setenv bs_at ${bs_mem}2
    setenv bs_other ${bs_state0}
  fi
  run bs_read
fi
run bs_read_starts

setenv bs_why ok
if test "${bs_good}" = 0; then
  setenv bs_kind fallback
  setenv bs_why state-unreadable
  setenv bs_left 0
  setenv bs_slot a
  if test "${bs_up}" = b; then setenv bs_slot b; fi
  # The data partition's note of the slot committed last: read only here, where nothing else is left.
  setenv bs_committed
  setenv bs_part
  if part number ${devtype} ${devnum} data bs_part; then
    if load ${devtype} ${devnum}:${bs_part} ${bs_out}000 bistable/committed 400; then
      env import -t ${bs_out}000 ${filesize} bs_committed
    fi
  fi
  if test "${bs_committed}" = a || test "${bs_committed}" = b; then setenv bs_slot ${bs_committed}; fi
  if test "${bs_slot}${bs_broken_a}${bs_broken_b}" = a10; then
    setenv bs_slot b
  elif test "${bs_slot}${bs_broken_a}${bs_broken_b}" = b01; then
    setenv bs_slot a
  fi
else
  setenv bs_slot ${bs_primary}
  setenv bs_kind committed
  if test "${bs_trial}" != -; then
    setenv bs_kind fallback
    if test "${bs_left}" = 0; then
      setenv bs_why tries-spent
    else
      run bs_count_down
      if test "${bs_written}" = 1; then
        setenv bs_slot ${bs_trial}
        setenv bs_kind try
      else
        setenv bs_why counter-unwritable
      fi
    fi
  elif test "${bs_spare}" = 1; then
    if test "${bs_primary}${bs_broken_a}${bs_broken_b}" = a10; then
      setenv bs_slot b
      setenv bs_kind fallback
      setenv bs_why primary-broken
    elif test "${bs_primary}${bs_broken_a}${bs_broken_b}" = b01; then
      setenv bs_slot a
      setenv bs_kind fallback
      setenv bs_why primary-broken
    fi
  fi
fi

# --- what the boot state says, then the other slot, then a pause and a reset: never a dead end, never a frenzy -----------

setenv bs_done 0
run bs_go
if test "${bs_done}" = 0; then
  if test "${bs_slot}" = a; then setenv bs_slot b; else setenv bs_slot a; fi
  setenv bs_kind fallback
  setenv bs_why image-unreadable
  run bs_go
fi
if test "${bs_done}" = 0; then
  echo "bistable: no slot can be loaded"
  echo "bistable: waiting 30 seconds"
  run bs_wait30
  run bs_reset
fi
