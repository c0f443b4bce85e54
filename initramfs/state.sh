# What outlives a slot, when a release is tried: kept as it was, migrated by the release, and put back when another release
# runs instead. Read by `init`, busybox sh. No system runs meanwhile, so nothing else changes a file here.
#
#   $WAY/undo      whose trial it is and what it did to the state: "SLOT RELEASE ROOTHASH kept|changed copy|SNAPSHOT", then
#                  "SCHEMA READABLE_BY" of before, or "-". It is there exactly while there is something to put back.
#   $WAY/copies/   on ext4: `list` of "N PATH" (or "- PATH": was not there) below $STATE, and N for each
#   $WAY/request   "SLOT RELEASE ROOTHASH SNAPSHOT": a person rolls back together with the state
#   $SNAPSHOTS/    on btrfs: read-only, NNNNNN-FROM-TO: as release FROM left it before TO, or "left": what was put aside
#
# On btrfs all state is one subvolume, so a snapshot holds one moment of it. Migrations always begin with the state as the
# old release left it: one that was cut is undone first, so none has to bear being run twice.

# Once $DATA is mounted. Sets STATE, WAY, SNAPSHOTS, SEEDING, VAR_LIST, schema_file, and what this release declares.
find_state() {
  me="$slot $release $roothash"
  WAY=$DATA/bistable/state SNAPSHOTS=$DATA/snapshots
  schema=0 readable=0 seconds=300 undo_of= undo_kind= undo_name= undo_schema=
  [ ! -s "$ETC/bistable-state" ] || read -r schema readable seconds <"$ETC/bistable-state"
  STATE=$DATA schema_file=$DATA/bistable/schema VAR_LIST=$DATA/bistable/var-seeded SEEDING=$DATA/bistable/seeding
  [ "$filesystem" = btrfs ] || return 0
  STATE=$DATA/state schema_file=$DATA/state/schema VAR_LIST=$DATA/state/var-seeded SEEDING=$DATA/state/seeding
  # A swap that was cut between its two renames.
  if [ ! -d "$STATE" ] && [ -d "$STATE.new" ]; then mv "$STATE.new" "$STATE" && sync || return 1; fi
  [ ! -d "$STATE.new" ] || btrfs -q subvolume delete "$STATE.new" || return 1
  [ -d "$STATE" ] || btrfs -q subvolume create "$STATE" || return 1
  # Without room for one of them nothing new is seeded or kept; what is there serves.
  mkdir -p "$SNAPSHOTS" "$SEEDING" || trouble "folders of the state cannot be made: no space?"
}

# $1: one sentence. A trial ends with it; anything else comes up, so that somebody can mend it.
trouble() {
  [ "$boot" != try ] || fail "$1"
  tell "$1"
}

# $1: one sentence, which the agent shows, too: what this start had to do without.
tell() {
  say "note $1"
  echo "$1" >>"$RUN/bistable/notes"
}

# $1: file, then its lines. There with the new content or with the old.
put_lines() {
  local file=$1
  shift
  printf '%s\n' "$@" >"$file.new" && sync && mv "$file.new" "$file" && sync
}

# Sets data_schema and data_readable; empty where the device has no state yet. False when the file is damaged.
read_schema() {
  data_schema= data_readable=
  if [ -e "$schema_file" ]; then
    read -r data_schema data_readable <"$schema_file"
    is_number "$data_schema" && is_number "$data_readable"
  elif [ -d "$STATE/var" ]; then
    # From before releases declared one.
    data_schema=0 data_readable=0
  fi
}

read_undo() {
  local s= r= h= rest=
  undo_of= undo_kind= undo_name= undo_schema=
  [ -e "$WAY/undo" ] || return 0
  { read -r s r h undo_kind undo_name; read -r undo_schema; } <"$WAY/undo"
  case $undo_kind in
    kept | changed) undo_of="$s $r $h" ;;
  esac
}

# $1: kept or changed, $2: copy or the name of a snapshot
write_undo() {
  local before=-
  [ -z "$data_schema" ] || before="$data_schema $data_readable"
  mkdir -p "$WAY" && put_lines "$WAY/undo" "$me $1 $2" "$before" && read_undo
}

# What was kept is not needed any more. The word first: copies alone mean nothing.
drop_undo() {
  rm -f "$WAY/undo" && sync && rm -rf "$WAY/copies" && read_undo
}

# --- copies: file systems without snapshots -----------------------------------------------------------------------------

# The kernel makes variables of words on its command line.
unset own_cp

# Sets own_cp: GNU's cp of the image, where it has one. busybox's has no hand for extended attributes, and an overlay keeps
# in them what was deleted.
find_own_cp() {
  local program
  # Once for a start.
  [ -z "${own_cp+known}" ] || return 0
  own_cp=
  for program in /bin/cp /usr/bin/cp; do
    chroot "$ROOT" $program --version 2>/dev/null | grep -q 'GNU coreutils' || continue
    own_cp=$program
    return 0
  done
}

# $1 to $2, which is not there yet, both below $ROOT; $3: what $1 is below, where that is the image alone, with the data
# partition in it. Everything comes along, or it fails.
copy_kept() {
  find_own_cp
  [ -n "$own_cp" ] || { cp -a "$1" "$2"; return; }
  local from=${3:-$ROOT}
  chroot "$from" $own_cp -dR --preserve=mode,ownership,timestamps,links,xattr -- "${1#"$from"}" "${2#"$ROOT"}"
}

# The same for what a system cannot start without: rather without extended attributes than not at all.
copy_tree() {
  copy_kept "$@" 2>"$TMP/error" && return 0
  [ -n "$own_cp" ] || return 1
  say "note copied without extended attributes: $(head -c 150 "$TMP/error")"
  rm -rf "$2"
  cp -a "$1" "$2"
}

keep_copies() {
  local path n=0
  rm -rf "$WAY/copies" && mkdir -p "$WAY/copies" && true >"$WAY/copies/list" || return 1
  while read -r path; do
    n=$((n + 1))
    if [ -e "$STATE/$path" ] || [ -L "$STATE/$path" ]; then
      copy_kept "$STATE/$path" "$WAY/copies/$n" && echo "$n $path" >>"$WAY/copies/list" || return 1
    else
      echo "- $path" >>"$WAY/copies/list" || return 1
    fi
  done <"$ETC/bistable-state-paths"
  sync
}

# Renames, so it needs no room; what is not there any more was put back before a cut.
put_back_copies() {
  local n path
  while read -r n path; do
    if [ "$n" = - ]; then
      rm -rf "${STATE:?}/$path" || return 1
    elif [ -e "$WAY/copies/$n" ] || [ -L "$WAY/copies/$n" ]; then
      rm -rf "${STATE:?}/$path" && mkdir -p "$(dirname "$STATE/$path")" && mv "$WAY/copies/$n" "$STATE/$path" || return 1
    fi
  done <"$WAY/copies/list"
  if [ "$undo_schema" = - ]; then rm -f "$schema_file"; else put_lines "$schema_file" "$undo_schema"; fi && sync
}

# --- snapshots: btrfs ---------------------------------------------------------------------------------------------------

# Sets snapshot. $1: what follows the number
new_snapshot_name() {
  local path last=0 n
  for path in "$SNAPSHOTS"/*; do
    n=${path##*/} n=${n%%-*}
    case $n in
      '' | *[!0-9]*) continue ;;
    esac
    # Not for octal.
    while [ "${n#0}" != "$n" ]; do n=${n#0}; done
    [ "${n:-0}" -le "$last" ] || last=$n
  done
  snapshot=$(printf '%06d-%s' $((last + 1)) "$1")
}

# $1: snapshot, $2: release whose state is put aside, or nothing: then it is thrown away. There is always a whole state, here
# or beside its place.
put_back_snapshot() {
  [ -d "$SNAPSHOTS/$1" ] && btrfs -q subvolume snapshot "$SNAPSHOTS/$1" "$STATE.new" && sync || return 1
  if [ -n "$2" ]; then
    new_snapshot_name "$2-left"
    mv "$STATE" "$SNAPSHOTS/$snapshot" && mv "$STATE.new" "$STATE" && sync || return 1
    btrfs property set -ts "$SNAPSHOTS/$snapshot" ro true
  else
    btrfs -q subvolume delete "$STATE" && mv "$STATE.new" "$STATE" && sync
  fi
}

# $1: as for put_back_snapshot's $2
put_back() {
  if [ "$undo_name" = copy ]; then put_back_copies; else put_back_snapshot "$undo_name" "$1"; fi
}

# --- a start ------------------------------------------------------------------------------------------------------------

# Before anything of the state is used: undoes what another release's trial did, and keeps the state before a trial.
settle_state() {
  local settled=yes
  read_undo
  if [ -n "$undo_of" ] && [ "$undo_of" != "$me" ]; then
    if [ "$undo_kind" = changed ]; then
      local theirs=${undo_of#? } aside=
      theirs=${theirs%% *}
      # Put aside is what a whole migration has made; half of one is of use to nobody.
      read_schema && [ "$data_schema $data_readable" = "$undo_schema" ] || aside=$theirs
      # Kept in mind until it is done: the next start tries again.
      if put_back "$aside"; then
        say "note the state is as it was before release $theirs"
      else
        trouble "the state before release $theirs cannot be put back"
        settled=no
      fi
    fi
    [ "$settled" = no ] || drop_undo || trouble "the record of the state cannot be written"
  elif [ -n "$undo_of" ] && [ "$boot" != try ]; then
    # Committed by now.
    drop_undo || say "note what was kept of the state cannot be dropped"
  fi
  if ! read_schema; then
    # Nothing is concluded from it; what is written stays.
    trouble "the schema of the data is not readable"
    data_schema=$schema data_readable=$readable
  elif [ -z "$data_schema" ]; then
    # Before anything is seeded: whatever will be here, this release brought it.
    mkdir -p "${schema_file%/*}" && put_lines "$schema_file" "$schema $readable" ||
      trouble "the schema of the data cannot be written"
    data_schema=$schema data_readable=$readable
  fi
  if [ "$boot" = try ]; then before_trial; elif [ -e "$WAY/request" ]; then rm -f "$WAY/request"; fi
}

before_trial() {
  local s= r= h= name= from=-
  if [ "$filesystem" = btrfs ] && [ -z "$undo_of" ]; then
    [ ! -e "$DATA/bistable/slots/$other/state" ] || read -r from r <"$DATA/bistable/slots/$other/state"
    new_snapshot_name "$from-$release"
    btrfs -q subvolume snapshot -r "$STATE" "$SNAPSHOTS/$snapshot" && write_undo kept "$snapshot" ||
      fail "no snapshot of the state can be made: no space?"
  fi
  [ ! -e "$WAY/request" ] || read -r s r h name <"$WAY/request"
  if [ -n "$name" ] && [ "$s $r $h" = "$me" ] && [ "$filesystem" = btrfs ]; then
    write_undo changed "$undo_name" && put_back_snapshot "$name" "" && rm -f "$WAY/request" && sync ||
      fail "the state of snapshot $name cannot be put back"
    say "note the state is that of snapshot $name"
    read_schema || fail "the schema of the data is not readable"
  elif [ "$undo_kind" = changed ] && [ "${data_schema:-$schema}" -lt "$schema" ]; then
    # The last try was cut while it migrated.
    put_back "" || fail "the state cannot be put back"
    if [ "$undo_name" = copy ]; then drop_undo; else write_undo kept "$undo_name"; fi &&
      read_schema || fail "the record of the state cannot be written"
    say "note a migration was cut; it begins again"
  fi
}

# Once everything is mounted on $ROOT: brings the data to this release's schema. Only a trial does; it has a way back.
migrate_state() {
  local to program said code
  if [ "$data_schema" -lt "$schema" ] && [ "$boot" = try ]; then
    enter migrate $LONG
    [ -e "$DATA/bistable/slots/$other/state" ] ||
      fail "the data have schema $data_schema and release $release needs $schema, but the release in slot $other cannot undo a migration"
    if [ "$filesystem" = btrfs ]; then
      write_undo changed "$undo_name" || fail "the record of the state cannot be written"
    else
      keep_copies && write_undo changed copy ||
        { rm -rf "$WAY/copies"; fail "the state cannot be copied for the way back: no space?"; }
    fi
    for folder in proc dev run; do mount -o bind /$folder "$ROOT/$folder"; done
    mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$ROOT/tmp"
    while read -r to program; do
      [ "$to" -gt "$data_schema" ] || continue
      [ "$to" = $((data_schema + 1)) ] || break
      patience $((seconds + LONG))
      say "note migration to $to: $program"
      BISTABLE_FROM=$data_schema BISTABLE_TO=$to PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        timeout -s KILL "$seconds" chroot "$ROOT" "$program" </dev/null >"$TMP/said" 2>&1
      code=$?
      said=$(tail -n 1 "$TMP/said" | head -c 120)
      [ $code = 0 ] || fail "migration $program to schema $to ended with $code after at most $seconds s: $said"
      data_schema=$to
    done <"$ETC/bistable-migrations"
    for folder in proc dev run tmp; do umount "$ROOT/$folder"; done
    [ "$data_schema" = "$schema" ] ||
      fail "the data have schema $data_schema, and release $release does not migrate them to $schema"
    sync && put_lines "$schema_file" "$schema $readable" || fail "the schema of the data cannot be written"
    data_readable=$readable
    say "note the data have schema $schema now"
  elif [ "$data_schema" -lt "$schema" ] || [ "$data_readable" -gt "$schema" ]; then
    say "note the data have schema $data_schema, release $release has $schema"
  fi
  tell_state
}

# For the agent: of this start, and what the release in this slot is.
tell_state() {
  local mine="$release $roothash $schema $readable" there=
  printf '%s\n' "$filesystem $data_schema $data_readable $schema" >"$RUN/bistable/state"
  [ ! -e "$DATA/bistable/slots/$slot/state" ] || read -r there <"$DATA/bistable/slots/$slot/state"
  [ "$there" = "$mine" ] ||
    { mkdir -p "$DATA/bistable/slots/$slot" && put_lines "$DATA/bistable/slots/$slot/state" "$mine"; } ||
    say "note the schema of slot $slot cannot be noted"
}
