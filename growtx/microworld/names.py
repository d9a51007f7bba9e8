"""Given and family names in three scripts."""

from __future__ import annotations

from typing import NamedTuple


class Spelling(NamedTuple):
    """A word in the three languages."""

    en: str
    ru: str
    zh: str


def _rows(table: str) -> list[Spelling]:
    return [Spelling(*entry.split("/")) for entry in " ".join(table.split()).split("; ")]


WOMEN = _rows(
    "Anna/Анна/安娜; Maria/Мария/玛丽亚; Elena/Елена/叶莲娜; Olga/Ольга/奥尔加; Irina/Ирина/伊琳娜; Laura/Лаура/劳拉; "
    "Julia/Юлия/尤利娅; Sofia/София/索菲娅; Clara/Клара/克拉拉; Emma/Эмма/艾玛; Nina/Нина/尼娜; Vera/Вера/薇拉; "
    "Marta/Марта/玛尔塔; Diana/Диана/黛安娜; Eva/Ева/伊娃; Paula/Паула/保拉; Rosa/Роза/罗莎; Sara/Сара/萨拉; "
    "Teresa/Тереза/特蕾莎; Veronica/Вероника/维罗妮卡; Victoria/Виктория/维多利亚; Amelia/Амелия/阿梅莉亚; "
    "Beata/Беата/贝娅塔; Camilla/Камилла/卡米拉; Carolina/Каролина/卡罗琳娜; Cecilia/Сесилия/塞西莉亚; "
    "Claudia/Клаудия/克劳迪娅; Daniela/Даниэла/丹妮拉; Dora/Дора/多拉; Erika/Эрика/埃丽卡; Fiona/Фиона/菲奥娜; "
    "Flora/Флора/弗洛拉; Gloria/Глория/格洛丽亚; Greta/Грета/格蕾塔; Hanna/Ханна/汉娜; Ida/Ида/伊达; "
    "Isabella/Изабелла/伊莎贝拉; Johanna/Йоханна/约翰娜; Katarina/Катарина/卡塔丽娜; Lea/Лея/莱娅; Lina/Лина/莉娜; "
    "Lydia/Лидия/莉迪娅; Magda/Магда/玛格达; Marina/Марина/玛丽娜; Monica/Моника/莫妮卡; Natalia/Наталия/娜塔莉亚; "
    "Nora/Нора/诺拉; Olivia/Оливия/奥利维娅; Petra/Петра/佩特拉; Regina/Регина/蕾吉娜; Sabina/Сабина/萨比娜; "
    "Sandra/Сандра/桑德拉; Silvia/Сильвия/西尔维娅; Stella/Стелла/斯特拉; Susanna/Сусанна/苏珊娜; "
    "Tamara/Тамара/塔玛拉; Tatiana/Татьяна/塔季扬娜; Ursula/Урсула/乌尔苏拉; Valeria/Валерия/瓦莱丽亚; "
    "Vanessa/Ванесса/瓦妮莎"
)
MEN = _rows(
    "Adam/Адам/亚当; Adrian/Адриан/阿德里安; Albert/Альберт/阿尔伯特; Alexander/Александр/亚历山大; "
    "Andreas/Андреас/安德烈亚斯; Anton/Антон/安东; Arthur/Артур/亚瑟; Boris/Борис/鲍里斯; Carl/Карл/卡尔; "
    "Daniel/Даниэль/丹尼尔; David/Давид/大卫; Denis/Денис/丹尼斯; Dmitri/Дмитрий/德米特里; Edward/Эдвард/爱德华; "
    "Emil/Эмиль/埃米尔; Erik/Эрик/埃里克; Felix/Феликс/费利克斯; Filip/Филип/菲利普; Frank/Франк/弗兰克; "
    "Georg/Георг/格奥尔格; Gregor/Грегор/格雷戈尔; Gustav/Густав/古斯塔夫; Hans/Ханс/汉斯; Henrik/Хенрик/亨里克; "
    "Igor/Игорь/伊戈尔; Ivan/Иван/伊万; Jakob/Якоб/雅各布; Jan/Ян/扬; Jonas/Йонас/约纳斯; Josef/Йозеф/约瑟夫; "
    "Julian/Юлиан/朱利安; Kirill/Кирилл/基里尔; Konrad/Конрад/康拉德; Lars/Ларс/拉尔斯; Leon/Леон/莱昂; "
    "Lucas/Лукас/卢卡斯; Marcel/Марсель/马塞尔; Mark/Марк/马克; Martin/Мартин/马丁; Matthias/Маттиас/马蒂亚斯; "
    "Maxim/Максим/马克西姆; Nikolai/Николай/尼古拉; Oleg/Олег/奥列格; Oliver/Оливер/奥利弗; Oscar/Оскар/奥斯卡; "
    "Patrick/Патрик/帕特里克; Peter/Петер/彼得; Rafael/Рафаэль/拉斐尔; Richard/Ричард/理查德; Robert/Роберт/罗伯特; "
    "Roman/Роман/罗曼; Rudolf/Рудольф/鲁道夫; Sebastian/Себастьян/塞巴斯蒂安; Sergei/Сергей/谢尔盖; "
    "Stefan/Стефан/斯特凡; Thomas/Томас/托马斯; Victor/Виктор/维克多; Vincent/Винсент/文森特; "
    "Vladimir/Владимир/弗拉基米尔; Yuri/Юрий/尤里"
)
FOREIGN_FAMILIES = _rows(
    "Weber/Вебер/韦伯; Klein/Кляйн/克莱因; Berg/Берг/伯格; Novak/Новак/诺瓦克; Keller/Келлер/凯勒; "
    "Fischer/Фишер/费舍尔; Wagner/Вагнер/瓦格纳; Becker/Беккер/贝克尔; Schmidt/Шмидт/施密特; Hoffmann/Хофман/霍夫曼; "
    "Richter/Рихтер/里希特; Wolf/Вольф/沃尔夫; Neumann/Нойман/诺伊曼; Schwarz/Шварц/施瓦茨; "
    "Zimmermann/Циммерман/齐默尔曼; Braun/Браун/布劳恩; Hartmann/Хартман/哈特曼; Lang/Ланг/朗格; Werner/Вернер/维尔纳; "
    "Krause/Краузе/克劳泽; Meier/Майер/迈尔; Koch/Кох/科赫; Bauer/Бауэр/鲍尔; Lehmann/Леман/莱曼; Huber/Хубер/胡贝尔; "
    "Vogel/Фогель/福格尔; Winter/Винтер/温特; Sommer/Зоммер/佐默; Stein/Штайн/施泰因; Jung/Юнг/荣格; "
    "Albrecht/Альбрехт/阿尔布雷希特; Kaiser/Кайзер/凯泽; Fuchs/Фукс/富克斯; Peters/Петерс/彼得斯; Schulz/Шульц/舒尔茨; "
    "Kraus/Краус/克劳斯; Adams/Адамс/亚当斯; Baker/Бейкер/贝克; Carter/Картер/卡特; Clark/Кларк/克拉克; "
    "Collins/Коллинз/柯林斯; Cooper/Купер/库珀; Davis/Дэвис/戴维斯; Edwards/Эдвардс/爱德华兹; Evans/Эванс/埃文斯; "
    "Foster/Фостер/福斯特; Gordon/Гордон/戈登; Graham/Грэм/格雷厄姆; Grant/Грант/格兰特; Hamilton/Гамильтон/汉密尔顿; "
    "Harris/Харрис/哈里斯; Hill/Хилл/希尔; Hughes/Хьюз/休斯; Jackson/Джексон/杰克逊; Johnson/Джонсон/约翰逊; "
    "Jones/Джонс/琼斯; Lewis/Льюис/刘易斯; Mason/Мейсон/梅森; Miller/Миллер/米勒; Mitchell/Митчелл/米切尔; "
    "Morgan/Морган/摩根; Morris/Моррис/莫里斯; Nelson/Нельсон/纳尔逊; Newman/Ньюман/纽曼; Parker/Паркер/帕克; "
    "Phillips/Филлипс/菲利普斯; Reed/Рид/里德; Roberts/Робертс/罗伯茨; Scott/Скотт/斯科特; Smith/Смит/史密斯; "
    "Spencer/Спенсер/斯宾塞; Stewart/Стюарт/斯图尔特; Taylor/Тейлор/泰勒; Thompson/Томпсон/汤普森; Turner/Тёрнер/特纳; "
    "Walker/Уокер/沃克; Watson/Уотсон/沃森; White/Уайт/怀特; Wilson/Уилсон/威尔逊; Wright/Райт/赖特; "
    "Andersen/Андерсен/安德森; Hansen/Хансен/汉森; Jensen/Йенсен/延森; Larsen/Ларсен/拉尔森; Nielsen/Нильсен/尼尔森; "
    "Olsen/Ольсен/奥尔森; Lindberg/Линдберг/林德伯格; Lund/Лунд/伦德; Holm/Хольм/霍尔姆; Dahl/Даль/达尔; "
    "Virtanen/Виртанен/维尔塔宁; Korhonen/Корхонен/科尔霍宁; Bernard/Бернар/贝尔纳; Dubois/Дюбуа/杜布瓦; "
    "Durand/Дюран/迪朗; Fournier/Фурнье/富尼耶; Girard/Жирар/吉拉尔; Lambert/Ламбер/朗贝尔; Laurent/Лоран/洛朗; "
    "Leroy/Леруа/勒鲁瓦; Michel/Мишель/米歇尔; Morel/Морель/莫雷尔; Moreau/Моро/莫罗; Petit/Пети/珀蒂; "
    "Fernandez/Фернандес/费尔南德斯; Gomez/Гомес/戈麦斯; Lopez/Лопес/洛佩斯; Martinez/Мартинес/马丁内斯; "
    "Perez/Перес/佩雷斯; Rodriguez/Родригес/罗德里格斯; Sanchez/Санчес/桑切斯; Torres/Торрес/托雷斯; "
    "Navarro/Наварро/纳瓦罗; Romero/Ромеро/罗梅罗; Moreno/Морено/莫雷诺; Castro/Кастро/卡斯特罗; Rossi/Росси/罗西; "
    "Bianchi/Бьянки/比安基; Ferrari/Феррари/费拉里; Conti/Конти/孔蒂; Ricci/Риччи/里奇; Romano/Романо/罗马诺; "
    "Marino/Марино/马里诺; Greco/Греко/格雷科; Gallo/Галло/加洛; Santos/Сантос/桑托斯; Alves/Алвес/阿尔维斯; "
    "Mendes/Мендес/门德斯; Horvat/Хорват/霍瓦特; Szabo/Сабо/萨博; Molnar/Мольнар/莫尔纳; Dvorak/Дворжак/德沃夏克; "
    "Wozniak/Возняк/沃兹尼亚克; Popescu/Попеску/波佩斯库; Ionescu/Ионеску/约内斯库; Kovalenko/Коваленко/科瓦连科; "
    "Shevchenko/Шевченко/舍甫琴科; Bondarenko/Бондаренко/邦达连科; Tkachenko/Ткаченко/特卡琴科; "
    "Marchenko/Марченко/马尔琴科; Petrosyan/Петросян/彼得罗相; Sargsyan/Саргсян/萨尔格相"
)
# Men's forms; a woman's name adds -a in English and Russian, and in Chinese turns 夫 into 娃 or adds 娜.
RUSSIAN_FAMILIES = _rows(
    "Ivanov/Иванов/伊万诺夫; Petrov/Петров/彼得罗夫; Sidorov/Сидоров/西多罗夫; Smirnov/Смирнов/斯米尔诺夫; "
    "Kuznetsov/Кузнецов/库兹涅佐夫; Popov/Попов/波波夫; Vasiliev/Васильев/瓦西里耶夫; Sokolov/Соколов/索科洛夫; "
    "Mikhailov/Михайлов/米哈伊洛夫; Fedorov/Фёдоров/费多罗夫; Morozov/Морозов/莫罗佐夫; Volkov/Волков/沃尔科夫; "
    "Alekseev/Алексеев/阿列克谢耶夫; Lebedev/Лебедев/列别杰夫; Semenov/Семёнов/谢苗诺夫; Egorov/Егоров/叶戈罗夫; "
    "Pavlov/Павлов/巴甫洛夫; Kozlov/Козлов/科兹洛夫; Stepanov/Степанов/斯捷潘诺夫; Nikolaev/Николаев/尼古拉耶夫; "
    "Orlov/Орлов/奥尔洛夫; Andreev/Андреев/安德烈耶夫; Makarov/Макаров/马卡罗夫; Nikitin/Никитин/尼基京; "
    "Zakharov/Захаров/扎哈罗夫; Zaitsev/Зайцев/扎伊采夫; Soloviev/Соловьёв/索洛维约夫; Borisov/Борисов/鲍里索夫; "
    "Yakovlev/Яковлев/雅科夫列夫; Grigoriev/Григорьев/格里戈里耶夫; Romanov/Романов/罗曼诺夫; Kuzmin/Кузьмин/库兹明; "
    "Frolov/Фролов/弗罗洛夫; Ilyin/Ильин/伊林; Gusev/Гусев/古谢夫; Titov/Титов/季托夫; Belov/Белов/别洛夫; "
    "Antonov/Антонов/安东诺夫; Tarasov/Тарасов/塔拉索夫; Komarov/Комаров/科马罗夫; Davydov/Давыдов/达维多夫"
)
