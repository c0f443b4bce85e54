import { spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { sha256 } from '../../bundle/digest.ts'
import { initFunctions } from '../helpers/init-functions.ts'
import { DATA } from './device.ts'

/**
 * What a data partition holds after a cut, read as the device does: `e2fsck -p` replays the journal (initramfs/init runs
 * it before it mounts), a superblock that is torn comes from its copy by that script's own function, and then there may
 * be nothing left to repair. The files come out by debugfs, so that no mount and no root is needed.
 */

export interface DataFiles {
  readonly files: ReadonlyMap<string, Buffer>
  /** Stands for names and contents. */
  readonly key: string
}

const ENV = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C.UTF-8' }

export class DataPartition {
  readonly #dir: string
  readonly #image: string
  readonly #known = new Map<string, DataFiles | string>()

  /** @param dir a folder of its own, better in memory */
  constructor(dir: string) {
    this.#dir = dir
    this.#image = join(dir, 'data.img')
  }

  /** Contents whose superblock had to come from its copy. */
  fromCopy = 0

  /** Distinct contents that were looked at. */
  get looked(): number {
    return this.#known.size
  }

  /** @param key stands for `bytes` @returns the files, or what is wrong with the file system */
  read(key: string, bytes: () => Buffer): DataFiles | string {
    let found = this.#known.get(key)
    if (found === undefined) {
      found = this.#look(bytes())
      this.#known.set(key, found)
    }
    return found
  }

  #look(bytes: Buffer): DataFiles | string {
    this.#write(bytes)
    const repaired = this.#run('e2fsck', ['-p', this.#image])
    // 1: something was set right, as after every cut. 4: a person would have to. 8: there was no superblock to begin with.
    const status = repaired.status ?? 8
    if (status > 1 && !(status >= 8 && this.#repairFromCopy(bytes.length)))
      return `e2fsck -p ended with ${status}: ${repaired.stdout}`
    const checked = this.#run('e2fsck', ['-fn', this.#image])
    if (checked.status !== 0) return `after the journal was replayed, e2fsck -fn finds: ${checked.stdout}`
    const out = join(this.#dir, 'out')
    rmSync(out, { recursive: true, force: true })
    mkdirSync(out)
    const dumped = this.#run('debugfs', ['-R', `rdump /bistable ${out}`, this.#image])
    if (dumped.status !== 0) return `debugfs ended with ${dumped.status}: ${dumped.stderr}`
    const files = new Map<string, Buffer>()
    for (const name of readdirSync(out, { recursive: true, withFileTypes: true }))
      if (name.isFile()) {
        const path = join(name.parentPath, name.name)
        files.set(`${DATA}${path.slice(join(out, 'bistable').length)}`, readFileSync(path))
      }
    const parts = [...files].map(([path, content]) => `${path}=${sha256(content)}`)
    return { files, key: sha256(Buffer.from(parts.sort().join('\n'))) }
  }

  #repairFromCopy(size: number): boolean {
    const sizes = join(this.#dir, 'data.img.d')
    mkdirSync(sizes, { recursive: true })
    writeFileSync(join(sizes, 'size'), `${size / 512}\n`)
    const places = { [`"/sys/class/block/$\{1##*/}/size"`]: `"${join(sizes, 'size')}"`, '/tmp/error': '/dev/null' }
    const script = initFunctions(['is_number', 'holds', 'repair_from_copy'], places)
    const done = this.#run('busybox', ['sh', '-c', `say() { :; }\n${script}\nrepair_from_copy "$0"`, this.#image])
    if (done.status === 0) this.fromCopy++
    return done.status === 0
  }

  #write(bytes: Buffer): void {
    const file = openSync(this.#image, 'w')
    try {
      // Holes stay holes.
      for (let at = 0; at < bytes.length; at += PIECE) {
        const piece = bytes.subarray(at, at + PIECE)
        if (at + PIECE >= bytes.length || !piece.equals(ZEROS.subarray(0, piece.length)))
          writeSync(file, piece, 0, piece.length, at)
      }
    } finally {
      closeSync(file)
    }
  }

  #run(program: string, args: readonly string[]) {
    const done = spawnSync(program, args, { env: ENV, encoding: 'latin1' })
    if (done.error !== undefined) throw done.error
    return done
  }
}

const PIECE = 256 * 1024
const ZEROS = Buffer.alloc(PIECE)
