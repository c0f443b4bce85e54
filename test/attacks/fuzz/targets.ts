import { strict as assert } from 'node:assert'
import { createHash } from 'node:crypto'
import { isBistableError } from '../../../base/errors.ts'
import { parseStrictJson } from '../../../base/strict-json.ts'
import { decodeFloor, encodeFloor } from '../../../bootloader/floor.ts'
import { chooseCopy, decodeCopy } from '../../../bootloader/grub-env.ts'
import { onBoot } from '../../../bootloader/machine.ts'
import { decodeReason, encodeReason } from '../../../bootloader/reason.ts'
import { encodeAddon, parseAddon } from '../../../bundle/addon.ts'
import { encodeAssignment, parseAssignment } from '../../../bundle/assignment.ts'
import { decodeIndex, encodeIndex } from '../../../bundle/chunks.ts'
import { encodeFreshness, parseFreshness } from '../../../bundle/freshness.ts'
import { encodeInventoryEntry, parseInventory } from '../../../bundle/inventory.ts'
import { parseApk, parseDpkg } from '../../../bundle/packages.ts'
import { inspectBundle } from '../../../bundle/reader.ts'
import { encodeRelease, parseRelease } from '../../../bundle/release.ts'
import { parseRpmHeader } from '../../../bundle/rpm/header.ts'
import { sqliteRows } from '../../../bundle/rpm/sqlite.ts'
import { openSquashfs } from '../../../bundle/squashfs/image.ts'
import { checkSystem } from '../../../bundle/system.ts'
import { parseTarHeader, tarHeader } from '../../../bundle/tar.ts'
import { decompressExactly, decompressStream } from '../../../bundle/zstd.ts'
import { parseBootLine } from '../../../device/agent/cmdline.ts'
import { decodeRecord, encodeRecord } from '../../../device/records/record.ts'
import { readElf } from '../../../initramfs/elf.ts'
import { decodeEnvelope, encodeEnvelope } from '../../../keys/dsse.ts'
import { encodeRoot, parseRoot } from '../../../keys/root.ts'
import { parseKeyUri } from '../../../keys/signers/uri.ts'
import { readModule } from '../../../publisher/lint/module-file.ts'
import { parseConfig, parseIndex, parseManifest, parseSaved } from '../../../publisher/oci/documents.ts'
import { parsePax } from '../../../publisher/tar/pax.ts'
import { fuzzHints, hintsSeeds } from './hints.ts'
import { fuzzLayer } from './layer.ts'
import * as patches from './patches.ts'
import * as seeds from './seeds.ts'
import { fuzzSigned, sourceOf } from './signed.ts'

/**
 * Every parser that meets bytes from outside. `run` may throw a typed refusal; anything else it throws is a finding:
 * an untyped error, or an assertion about what was read (mostly: it is what its own encoding reads back as).
 */
export interface Target {
  readonly name: string
  readonly seeds: () => Promise<readonly Uint8Array[]>
  readonly run: (bytes: Uint8Array) => unknown
}

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('utf8')
const same = (a: Uint8Array, b: Uint8Array) => assert.equal(Buffer.compare(a, b), 0, 'another encoding was read')
const stream = function* (bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}
/** A statement parser and its encoder: what was read can be written and is read again as the same. */
const statement =
  <T>(parse: (bytes: Uint8Array) => T, encode: (value: T) => Uint8Array) =>
  (bytes: Uint8Array) => {
    const value = parse(bytes)
    assert.deepEqual(parse(encode(value)), value)
  }

export const TARGETS: readonly Target[] = [
  {
    name: 'json',
    seeds: seeds.json,
    run: (bytes) => {
      const value = parseStrictJson(bytes, { maxBytes: 4096 })
      assert.deepEqual(JSON.parse(text(bytes)), JSON.parse(JSON.stringify(value)))
    },
  },
  {
    name: 'envelope',
    seeds: seeds.envelopes,
    run: (bytes) => same(encodeEnvelope(decodeEnvelope(bytes)), bytes),
  },
  { name: 'root', seeds: seeds.roots, run: statement((bytes) => parseRoot(bytes), encodeRoot) },
  { name: 'release', seeds: seeds.releases, run: statement(parseRelease, encodeRelease) },
  { name: 'freshness', seeds: seeds.freshness, run: statement(parseFreshness, encodeFreshness) },
  { name: 'assignment', seeds: seeds.assignments, run: statement(parseAssignment, encodeAssignment) },
  { name: 'addon', seeds: seeds.addons, run: statement(parseAddon, encodeAddon) },
  { name: 'bundle', seeds: seeds.bundles, run: (bytes) => inspectBundle(sourceOf(bytes)) },
  { name: 'signed-bundle', seeds: seeds.signedBundles, run: fuzzSigned },
  { name: 'chunk-index', seeds: seeds.indexes, run: (bytes) => same(encodeIndex(decodeIndex(bytes)), bytes) },
  { name: 'hints', seeds: hintsSeeds, run: fuzzHints },
  {
    name: 'bundle-header',
    seeds: seeds.headers,
    run: (bytes) => {
      const found = parseTarHeader(bytes)
      if (found !== undefined) same(tarHeader(found.name, found.size), bytes)
    },
  },
  {
    name: 'zstd',
    seeds: seeds.frames,
    run: async (bytes) => {
      const pieces: Uint8Array[] = []
      const limits = { atMost: 1 << 20, windowLogMax: 23 }
      for await (const piece of decompressStream(stream(bytes, 100), limits)) pieces.push(piece)
      const all = Buffer.concat(pieces)
      assert.ok(all.length <= limits.atMost)
      same(decompressExactly(bytes, all.length), all)
    },
  },
  {
    name: 'inventory',
    seeds: seeds.inventories,
    run: async (bytes) => {
      let again = ''
      for await (const entry of parseInventory(stream(bytes, 64))) again += encodeInventoryEntry(entry)
      same(Buffer.from(again), bytes)
    },
  },
  { name: 'dpkg', seeds: seeds.dpkg, run: (bytes) => parseDpkg(text(bytes), 'status') },
  { name: 'apk', seeds: seeds.apk, run: (bytes) => parseApk(text(bytes), 'installed') },
  { name: 'rpm-header', seeds: seeds.rpmHeaders, run: (bytes) => parseRpmHeader(bytes, 'rpmdb') },
  {
    name: 'sqlite',
    seeds: seeds.databases,
    run: (bytes) => {
      let rows = 0
      for (const _ of sqliteRows(bytes, 'Packages', 'rpmdb.sqlite')) rows++
      assert.ok(rows <= 1 << 20)
    },
  },
  {
    name: 'squashfs',
    seeds: seeds.squashfs,
    run: async (bytes) => {
      const image = await openSquashfs(
        { read: async (offset, length) => Uint8Array.from(bytes.subarray(offset, offset + length)) },
        bytes.length,
      )
      let read = 0
      for await (const entry of image.walk()) {
        assert.match(entry.path, /^(?!.*(?:^|\/)\.\.?(?:\/|$))[^\0]*$/s)
        await image.names(entry)
        for await (const piece of image.read(entry)) {
          read += piece.length
          // A sparse file may claim far more than the image has.
          if (read > 64 << 20) return
        }
      }
      await image.contentBoundaries()
    },
  },
  { name: 'layer', seeds: seeds.layers, run: (bytes) => fuzzLayer(bytes, 'none') },
  { name: 'layer-gzip', seeds: seeds.gzipLayers, run: (bytes) => fuzzLayer(bytes, 'gzip') },
  { name: 'layer-zstd', seeds: seeds.zstdLayers, run: (bytes) => fuzzLayer(bytes, 'zstd') },
  { name: 'pax', seeds: seeds.pax, run: (bytes) => parsePax(bytes) },
  { name: 'oci-index', seeds: seeds.ociIndexes, run: (bytes) => parseIndex(bytes, 'index.json') },
  {
    name: 'oci-manifest',
    seeds: seeds.ociManifests,
    run: (bytes) => parseManifest(bytes, 'manifest', 'application/vnd.oci.image.manifest.v1+json'),
  },
  { name: 'oci-config', seeds: seeds.ociConfigs, run: (bytes) => parseConfig(bytes, 'config') },
  { name: 'docker-archive', seeds: seeds.savedImages, run: (bytes) => parseSaved(bytes, 'manifest.json') },
  {
    name: 'grub-env',
    seeds: seeds.grubEnvs,
    run: (bytes) => {
      const half = bytes.length >> 1
      const copies = [decodeCopy(bytes.subarray(0, half)), decodeCopy(bytes.subarray(half))] as const
      const counting = chooseCopy(copies)
      const copy = counting === undefined ? undefined : copies[counting]
      const { starts } = decodeReason(bytes.subarray(half))
      const decision = onBoot(copy?.kind === 'valid' ? copy.state : undefined, {
        starts,
        writable: true,
        loadable: { a: true, b: true },
      })
      assert.ok(decision.slot === 'a' || decision.slot === 'b')
      assert.ok(decision.left >= 0 && decision.left <= 9)
    },
  },
  {
    name: 'reason',
    seeds: seeds.reasons,
    run: (bytes) => {
      const reason = decodeReason(bytes)
      assert.deepEqual(decodeReason(encodeReason(reason)), reason)
    },
  },
  { name: 'floor', seeds: seeds.floors, run: (bytes) => same(encodeFloor(decodeFloor(bytes)), bytes) },
  {
    name: 'record',
    seeds: seeds.records,
    run: (bytes) => {
      const record = decodeRecord(bytes, 'record')
      assert.deepEqual(decodeRecord(encodeRecord(record), 'record'), record)
    },
  },
  {
    // As `record`, with the checksum put right: what a damaged agent could have written.
    name: 'record-body',
    seeds: seeds.recordBodies,
    run: (bytes) => {
      const sum = createHash('sha256')
        .update(`7\n${text(bytes)}`)
        .digest('hex')
      const record = decodeRecord(Buffer.from(`bistable-record 1 7 ${sum}\n${text(bytes)}`), 'record')
      assert.deepEqual(decodeRecord(encodeRecord(record), 'record'), record)
    },
  },
  { name: 'command-line', seeds: seeds.commandLines, run: (bytes) => parseBootLine(text(bytes)) },
  {
    name: 'system-json',
    seeds: seeds.systems,
    run: (bytes) => {
      let value: unknown
      try {
        value = JSON.parse(text(bytes))
      } catch {
        return
      }
      checkSystem(value)
    },
  },
  { name: 'elf', seeds: seeds.programs, run: (bytes) => readElf(bytes, 'busybox') },
  {
    name: 'kernel-module',
    seeds: seeds.modules,
    run: (bytes) => {
      try {
        readModule(bytes)
      } catch (error) {
        // Its own word for a file that is none.
        if (!(error instanceof RangeError)) throw error
      }
    },
  },
  { name: 'key-uri', seeds: seeds.keyUris, run: (bytes) => parseKeyUri(text(bytes)) },
  { name: 'delta-head', seeds: patches.deltaHeads, run: patches.fuzzDeltaHead },
  { name: 'delta-unit', seeds: patches.deltaUnits, run: patches.fuzzDeltaUnit },
  { name: 'delta-side', seeds: patches.deltaSides, run: patches.fuzzDeltaSide },
  { name: 'delta-old-image', seeds: seeds.squashfs, run: patches.fuzzOldImage },
]

export type Outcome =
  | { readonly kind: 'read' | 'refused'; readonly code: string }
  | { readonly kind: 'finding'; readonly error: unknown }

/** Runs one input. A typed refusal is fine, whatever it is. */
export async function tryInput(target: Target, bytes: Uint8Array): Promise<Outcome> {
  try {
    await target.run(bytes)
    return { kind: 'read', code: 'read' }
  } catch (error) {
    return isBistableError(error) ? { kind: 'refused', code: error.code } : { kind: 'finding', error }
  }
}
