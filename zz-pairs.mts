// usage: pairs.mts N ours|both AGENT
import { mkdir, rm, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { installOnce } from '/work/wt/perf/bench/device.ts'
import { makeLoop, forget } from '/work/wt/perf/bench/loop.ts'
import { startRauc } from '/work/wt/perf/bench/rauc.ts'
import { imagesOf } from '/work/wt/perf/bench/workshop.ts'
import { treeSize } from '/work/wt/perf/bundle/tree.ts'
import { tool } from '/work/wt/perf/bench/measure.ts'
const shop = JSON.parse(await readFile('/tmp/w/perf/shop.json','utf8'))
const n = Number(process.argv[2]); const both = process.argv[3]==='both'
const agent = process.argv[4] ?? '/work/wt/perf/dist/device/bistable.mjs'
const folder='/tmp/w/perf/pairs'
await rm(folder,{recursive:true,force:true}); await mkdir(folder,{recursive:true})
const sizes:any={}
for (const {name,length} of await imagesOf(shop.r.build)) sizes[name]=length+treeSize(length)
const mk=(s:string)=>makeLoop(join(folder,s),sizes[s.slice(0,-2)])
const loops={a:{boot:await mk('boot-a'),rootfs:await mk('rootfs-a')},b:{boot:await mk('boot-b'),rootfs:await mk('rootfs-b')}}
const slots={a:{boot:loops.a.boot.path,rootfs:loops.a.rootfs.path},b:{boot:loops.b.boot.path,rootfs:loops.b.rootfs.path}}
const old=join(folder,'old')
await tool('dd',['if=/dev/urandom',`of=${old}`,'bs=1M',`count=${loops.b.rootfs.size/2**20}`,'status=none'])
const prepare=async(f:string)=>{await loops.b.boot.fillFrom(old);await loops.b.rootfs.fillFrom(old);await forget(f)}
const w:any={folder,rootStatement:shop.rootStatement,device:{node:shop.device.node,agent}}
const rauc = both? await startRauc(join(folder,'rauc'),slots):undefined
try{
 const raucb = rauc? await rauc.bundle({boot:join(shop.r.build,'boot.img'),rootfs:join(shop.r.build,'rootfs.img')}):''
 const col:any={ours:[],theirs:[]}
 for(let i=0;i<n;i++){
  if(rauc){await prepare(raucb); const m=await rauc.install(raucb); col.theirs.push(m.seconds); console.log('rauc', m.seconds.toFixed(3), m.cpuSeconds.toFixed(2), m.peakMiB.toFixed(0))}
  await prepare(shop.r.bundle); const m=await installOnce(w,slots,shop.r.bundle); col.ours.push(m.seconds); console.log('ours', m.seconds.toFixed(3), m.cpuSeconds.toFixed(2), m.peakMiB.toFixed(0))
  for (const {name,length} of await imagesOf(shop.r.build)) await tool('cmp',['-n',String(length),join(shop.r.build,`${name}.img`),(loops.b as any)[name].path])
 }
 const med=(a:number[])=>[...a].sort((x,y)=>x-y)[a.length>>1]
 console.log('medians ours',med(col.ours),'rauc',med(col.theirs), 'ratio', (med(col.ours)!/med(col.theirs)!).toFixed(2))
}finally{await rauc?.stop(); for(const s of Object.values(loops))for(const l of Object.values(s))await (l as any).detach(); await rm(folder,{recursive:true,force:true})}
