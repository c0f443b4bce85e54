import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { cliErrors, type Invocation, type OptionSpec, requiredOption, stringOption, type Verb } from '../../base/cli.ts'
import { EXIT, systemReason } from '../../base/errors.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { INITRAMFS_NEEDS } from '../../initramfs/build.ts'
import { type AgentParts, agentFiles } from '../agent-overlay.ts'
import { buildRelease, newestTime, SQUASHFS_WRITERS, type SquashfsWriter } from '../build.ts'
import { deriveTree } from '../derive.ts'
import { lintTree } from '../lint/lint.ts'
import { problemLine } from '../lint/report.ts'
import { ociErrors } from '../oci/errors.ts'
import { mergeImage, type StoredTree } from '../oci/merge.ts'
import { openImage } from '../oci/open.ts'
import { packageRoot } from '../package.ts'
import { type BuilderFacts, UNNAMED_BUILDER } from '../provenance.ts'
import { numberOption, onePositional, releaseOption, sizeOption } from './options.ts'

/** The verbs that read an image: lint and build. */

const imageOptions = {
  platform: { type: 'string', value: 'OS/ARCH', help: 'which image of a multi-architecture index' },
  'plain-http': { type: 'boolean', help: 'read a registry without TLS' },
  agent: { type: 'string', value: 'DIR', help: "add the agent from this folder ('npm run build' makes dist/device)" },
  node: { type: 'string', value: 'FILE', help: 'with --agent: the node program for the device' },
  system: { type: 'string', value: 'FILE', help: 'add this system.json' },
  root: { type: 'string', value: 'FILE', help: 'add this root.json' },
  'work-dir': { type: 'string', value: 'DIR', help: 'where scratch files go' },
} as const satisfies Record<string, OptionSpec>

export const lintVerb: Verb = {
  name: 'lint',
  usage: 'lint IMAGE [--agent DIR] [--system FILE] [--root FILE]',
  summary: 'List everything that would keep an image from working as a release.',
  options: imageOptions,
  run: async (call) =>
    await withTree(call, tmpdir(), undefined, async (tree) => {
      const time = newestTime(tree)
      const added = await agentFiles(tree, agentParts(call), time)
      const { problems } = await lintTree(deriveTree(tree, { add: added, time }), INITRAMFS_NEEDS)
      const errors = problems.filter(({ severity }) => severity === 'error').length
      if (call.json) call.terminal.out(JSON.stringify({ ok: errors === 0, problems }))
      else {
        for (const problem of problems) call.terminal.out(problemLine(problem))
        call.terminal.out(errors === 0 ? 'lint: ok' : `lint: ${errors} errors`)
      }
      return errors === 0 ? 0 : EXIT.input
    }),
}

export const buildVerb: Verb = {
  name: 'build',
  usage: 'build IMAGE --output DIR --version V --counter N',
  summary: 'Build the images and the unsigned statement of a release. Needs no key.',
  options: {
    ...imageOptions,
    output: { type: 'string', value: 'DIR', help: 'the new build folder' },
    version: { type: 'string', value: 'V', help: 'for people: "2.0.0"' },
    counter: { type: 'string', value: 'N', help: 'release number; rises with every release of an epoch' },
    epoch: { type: 'string', value: 'N', help: "the root's epoch (1)" },
    'root-version': { type: 'string', value: 'N', help: "oldest root whose keys may sign (the image's root.json)" },
    'security-floor': { type: 'string', value: 'E.C', help: 'nothing older boots once this is committed (0.0)' },
    level: { type: 'string', value: 'N', help: 'zstd level of the root file system, 1 to 22 (15)' },
    block: { type: 'string', value: 'SIZE', help: 'SquashFS block size, 4K to 1M (128K)' },
    'squashfs-writer': { type: 'string', value: 'NAME', help: 'own (unless told) or mksquashfs' },
    processors: { type: 'string', value: 'N', help: 'compression threads (all)' },
    'builder-id': { type: 'string', value: 'URI', help: 'who builds, for the provenance' },
    invocation: { type: 'string', value: 'ID', help: "the pipeline's name of this run, for the provenance" },
  },
  run: async (call) => {
    const output = resolve(requiredOption(call, 'output'))
    const time = sourceDateEpoch(process.env['SOURCE_DATE_EPOCH'])
    const processors =
      call.options['processors'] === undefined ? undefined : threads(numberOption(call, 'processors', 1))
    const rootVersion = call.options['root-version'] === undefined ? undefined : numberOption(call, 'root-version', 1)
    const request = {
      version: requiredOption(call, 'version'),
      number: { epoch: numberOption(call, 'epoch', 0, 1), counter: numberOption(call, 'counter', 0) },
      securityFloor: releaseOption(call, 'security-floor') ?? { epoch: 0, counter: 0 },
      parts: agentParts(call),
      blockSize: blockSize(sizeOption(call, 'block') ?? 128 * 1024),
      level: zstdLevel(numberOption(call, 'level', 1, 15)),
      writer: squashfsWriter(stringOption(call, 'squashfs-writer') ?? 'own'),
      ...(time === undefined ? {} : { time }),
      ...(processors === undefined ? {} : { processors }),
      ...(rootVersion === undefined ? {} : { rootVersion }),
      builder: builderOf(call),
    }
    return await withTree(call, dirname(output), time, async (tree) => {
      const say = (line: string): void => call.terminal.err(`build: ${line}`)
      const whole = { ...request, source: tree.source }
      const { build, lint } = await buildRelease(tree, whole, output, { say, signal: call.signal })
      const warnings = lint.problems.filter(({ severity }) => severity === 'warning')
      const { product, number, images } = build.statement
      if (call.json)
        call.terminal.out(
          JSON.stringify({ ok: true, output, digest: build.digest, product, number, images, problems: lint.problems }),
        )
      else {
        for (const warning of warnings) call.terminal.err(problemLine(warning))
        for (const { name, length, root } of images) call.terminal.out(`${name} ${length} bytes, root ${root}`)
        call.terminal.out(`${product} ${formatNumber(number)} ${build.digest}`)
      }
      return 0
    })
  },
}

function builderOf(call: Invocation): BuilderFacts {
  const id = stringOption(call, 'builder-id') ?? UNNAMED_BUILDER
  const invocation = stringOption(call, 'invocation')
  if (!/^[a-z][a-z0-9+.-]*:[!-~]{1,500}$/i.test(id)) throw cliErrors.USAGE(`--builder-id wants a URI, found '${id}'`)
  return { id, ...(invocation === undefined ? {} : { invocation }) }
}

function agentParts(call: Invocation): AgentParts {
  const files = stringOption(call, 'agent')
  const node = stringOption(call, 'node')
  const system = stringOption(call, 'system')
  const root = stringOption(call, 'root')
  if (node !== undefined && files === undefined) throw cliErrors.USAGE('--node goes with --agent')
  const device = join(packageRoot(), 'device')
  return {
    ...(files === undefined
      ? {}
      : {
          agent: {
            files,
            launcher: join(device, 'bin', 'bistable'),
            units: join(device, 'systemd'),
            inits: join(device, 'inits'),
            ...(node === undefined ? {} : { node }),
          },
        }),
    ...(system === undefined ? {} : { system }),
    ...(root === undefined ? {} : { root }),
  }
}

async function withTree<T>(
  call: Invocation,
  workParent: string,
  clampTime: number | undefined,
  use: (tree: StoredTree) => Promise<T>,
): Promise<T> {
  const platform = stringOption(call, 'platform')
  const reference = onePositional(call, 'IMAGE')
  const workDir = await makeWorkDir(stringOption(call, 'work-dir') ?? workParent)
  try {
    const input = await openImage(reference, {
      tempDir: workDir,
      signal: call.signal,
      tlsVerify: call.options['plain-http'] !== true,
      ...(platform === undefined ? {} : { platform }),
    })
    try {
      const tree = await mergeImage(input, workDir, {
        signal: call.signal,
        ...(clampTime === undefined ? {} : { clampTime }),
      })
      try {
        return await use(tree)
      } finally {
        tree.close()
      }
    } finally {
      await input.close()
    }
  } finally {
    await rm(workDir, { recursive: true, force: true })
  }
}

async function makeWorkDir(parent: string): Promise<string> {
  try {
    return await mkdtemp(join(parent, '.bistable-'))
  } catch (cause) {
    throw ociErrors.IMAGE_STORE_FAILED(`no work folder can be made in '${parent}': ${systemReason(cause)}`, { cause })
  }
}

function sourceDateEpoch(text: string | undefined): number | undefined {
  if (text === undefined || text === '') return undefined
  const time = Number(text)
  if (!/^\d{1,10}$/.test(text) || time > 0xffffffff)
    throw cliErrors.USAGE(`SOURCE_DATE_EPOCH is '${text}', wanted seconds since 1970 in 32 bits`)
  return time
}

function blockSize(bytes: number): number {
  if (bytes < 4096 || bytes > 1024 * 1024 || (bytes & (bytes - 1)) !== 0)
    throw cliErrors.USAGE(`--block wants a power of two from 4K to 1M, found ${bytes}`)
  return bytes
}

function squashfsWriter(name: string): SquashfsWriter {
  const writer = SQUASHFS_WRITERS.find((known) => known === name)
  if (writer === undefined)
    throw cliErrors.USAGE(`--squashfs-writer wants ${SQUASHFS_WRITERS.join(' or ')}, found '${name}'`)
  return writer
}

/** Each takes tens of MiB: a slip of the finger must not take the machine down. */
function threads(count: number): number {
  if (count > 1024) throw cliErrors.USAGE(`--processors wants 1 to 1024, found ${count}`)
  return count
}

function zstdLevel(level: number): number {
  if (level > 22) throw cliErrors.USAGE(`--level wants 1 to 22, found ${level}`)
  return level
}
